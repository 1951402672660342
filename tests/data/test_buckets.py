"""Batches of few shapes: whatever the lengths, every item is in one, and they go out in order."""

import itertools
import random

import numpy as np
import pytest

from t5x_lite.data.buckets import batches, bucket, in_order, inputs_batch, pairs_batch, until_end
from t5x_lite.data.packing import encoder_decoder


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 33, 48, 49, 100, 512, 513])
def test_buckets_hold_what_they_are_for_and_are_few(length):
    assert length <= bucket(length) <= max(16, 2 * length - 1)
    assert length <= 32 or bucket(length) <= 1.5 * length
    assert {bucket(n) for n in range(1025)} == {16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}


def lengths(count, seed=0):
    rng = random.Random(seed)
    return [min(512, int(rng.lognormvariate(4, 1)) + 1) for _ in range(count)]


@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 128, 129, 500])
def test_every_item_is_in_one_batch(rows, count):
    items = lengths(count)
    found = list(batches(iter(items), lambda length: (length,), rows))
    assert sorted(pair for batch in found for pair in batch) == list(enumerate(items))
    assert all(0 < len(batch) <= rows for batch in found)
    # What is waited for comes first.
    firsts = [min(number for number, _ in batch) for batch in found]
    assert firsts == sorted(firsts)


def test_little_is_padding():
    items, rows = lengths(4096), 8
    padded = sum(rows * bucket(max(n for _, n in batch)) for batch in batches(items, lambda n: (n,), rows))
    as_they_came = sum(rows * bucket(max(items[i : i + rows])) for i in range(0, len(items), rows))
    assert padded < 1.5 * sum(items) < 2 * sum(items) < as_they_came


def test_items_of_one_padded_length_stay_in_order_and_leave_at_once():
    found = batches(itertools.islice(itertools.cycle(range(32, 16, -1)), 64), lambda n: (n,), 4)
    assert [number for batch in found for number, _ in batch] == list(range(64))


@pytest.mark.parametrize("done", [0, 1, 63, 64, 65, 130, 199, 200])
def test_a_command_that_goes_on_computes_the_same_batches(done):
    items = lengths(200)
    whole = list(batches(items, lambda n: (n,), 4))
    rest = list(batches(items, lambda n: (n,), 4, done))
    assert rest == [batch for batch in whole if max(number for number, _ in batch) >= done]
    answered = in_order((pair for batch in rest for pair in batch), done)
    assert list(answered) == items[done:]


def test_no_more_is_read_than_a_window():
    read = []
    items = (read.append(n) or n for n in range(10_000))
    next(batches(items, lambda n: (n % 50,), 4))
    assert len(read) == 64


def test_answers_leave_as_soon_as_all_before_them_are_there():
    seen = []
    answers = ((number, seen.append(number) or number) for number in (2, 0, 1, 4, 3))
    left = [(answer, len(seen)) for answer in in_order(answers)]
    assert left == [(0, 2), (1, 3), (2, 3), (3, 5), (4, 5)]


def test_requests_become_padded_batches():
    batch = inputs_batch([[5, 6, 1], [7] * 17], rows=4)
    assert batch.shape == (4, 32) and batch.dtype == np.int32
    assert batch[0].tolist() == [5, 6, 1] + [0] * 29 and batch[1].sum() == 7 * 17 and not batch[2:].any()
    pairs = pairs_batch([([5, 1], [8, 9, 1]), ([7] * 17, [1])], rows=3, convert=encoder_decoder)
    assert pairs["encoder_input_tokens"].shape == (3, 32) and pairs["decoder_target_tokens"].shape == (3, 16)
    assert pairs["decoder_input_tokens"][0, :4].tolist() == [0, 8, 9, 0]
    assert pairs["decoder_loss_weights"].sum(axis=1).tolist() == [3, 1, 0]


def test_ids_end_before_the_end_token():
    assert until_end(np.array([5, 1, 7, 1]), 1) == [5] and until_end(np.array([5, 7]), 1) == [5, 7]
