"""Packing: every token once, in order of arrival within a row, no row too long; the model's features from rows."""

import numpy as np
import pytest

from t5x_lite.data.packing import OPEN_ROWS, Packer, decoder_only, encoder_decoder, feature_types, fill

LENGTHS = {"inputs": 20, "targets": 9}


def examples(count, seed, longest=1.0):
    """Examples whose tokens are all different: token = 1 + 100 * example + place."""
    rng = np.random.default_rng(seed)
    return [
        {
            name: 1 + 100 * number + np.arange(rng.integers(1, max(2, int(length * longest)) + 1), dtype=np.int32)
            for name, length in LENGTHS.items()
        }
        for number in range(count)
    ]


def packed(given, pack=True):
    packer = Packer(LENGTHS, pack)
    return [row for example in given for row in packer.add(example)] + packer.flush()


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "one each"])
@pytest.mark.parametrize(("count", "longest"), [(0, 1.0), (1, 1.0), (300, 1.0), (300, 0.3)])
def test_every_example_once_and_no_row_too_long(count, longest, pack):
    given = examples(count, seed=count, longest=longest)
    rows = packed(given, pack)
    place = {id(example): number for number, example in enumerate(given)}
    order = [[place[id(example)] for example in row] for row in rows]
    assert sorted(sum(order, [])) == list(range(count))
    for row, numbers in zip(rows, order):
        assert numbers == sorted(numbers)
        assert row and (pack or len(row) == 1)
        for name, length in LENGTHS.items():
            assert sum(len(example[name]) for example in row) <= length
    if pack and longest < 1 and count:
        assert len(rows) < 0.5 * count


def test_rows_leave_when_full_and_few_stay_open():
    packer = Packer(LENGTHS)
    full = {"inputs": np.arange(20, dtype=np.int32), "targets": np.arange(3, dtype=np.int32)}
    assert packer.add(full) == [[full]]
    half = {"inputs": np.arange(11, dtype=np.int32), "targets": np.arange(3, dtype=np.int32)}
    left = [packer.add(half) for _ in range(OPEN_ROWS + 3)]
    assert [len(rows) for rows in left] == [0] * OPEN_ROWS + [1] * 3
    assert len(packer.open_rows()) == OPEN_ROWS
    assert len(packer.flush()) == OPEN_ROWS and packer.open_rows() == [] and packer.flush() == []


def test_reopened_rows_go_on_as_if_never_closed():
    given = examples(120, seed=3, longest=0.4)
    for cut in (1, 50, 119):
        one, other = Packer(LENGTHS), Packer(LENGTHS)
        before = [row for example in given[:cut] for row in one.add(example)]
        other.reopen(one.open_rows())
        after = [row for example in given[cut:] for row in other.add(example)] + other.flush()
        for row, expected in zip(before + after, packed(given), strict=True):
            assert [id(e) for e in row] == [id(e) for e in expected]


def test_filled_rows_hold_the_tokens_and_count_segments_from_one():
    rows = [*packed(examples(40, seed=5, longest=0.4)), []]
    arrays = fill(rows, LENGTHS)
    for name, length in LENGTHS.items():
        tokens, segments = arrays[name], arrays[f"{name}_segment_ids"]
        assert tokens.shape == segments.shape == (len(rows), length)
        assert tokens.dtype == segments.dtype == np.int32
        for r, row in enumerate(rows):
            expected = np.concatenate([[], *(example[name] for example in row)])
            np.testing.assert_array_equal(tokens[r, : len(expected)], expected)
            np.testing.assert_array_equal(segments[r] == 0, np.arange(length) >= len(expected))
            assert not tokens[r, len(expected) :].any()
            counts = [np.count_nonzero(segments[r] == n) for n in range(1, len(row) + 1)]
            assert counts == [len(example[name]) for example in row]
            assert segments[r].max(initial=0) == len(row)


def test_decoder_inputs_are_shifted_within_each_example():
    rows = packed(examples(60, seed=6, longest=0.4))
    arrays = fill([*rows, []], LENGTHS)
    batch = encoder_decoder(arrays, packed=True)
    for r, row in enumerate(rows):
        expected = [t for example in row for t in [0, *example["targets"][:-1]]]
        np.testing.assert_array_equal(batch["decoder_input_tokens"][r, : len(expected)], expected)
    np.testing.assert_array_equal(batch["decoder_target_tokens"], arrays["targets"])
    np.testing.assert_array_equal(batch["encoder_input_tokens"], arrays["inputs"])
    np.testing.assert_array_equal(batch["decoder_loss_weights"], arrays["targets_segment_ids"] > 0)
    np.testing.assert_array_equal(batch["decoder_segment_ids"], arrays["targets_segment_ids"])
    np.testing.assert_array_equal(batch["encoder_segment_ids"], arrays["inputs_segment_ids"])
    assert not any(array[-1].any() for array in batch.values())  # an empty row is all padding, of weight 0
    assert "decoder_segment_ids" not in encoder_decoder(arrays, packed=False)


def test_a_target_that_is_token_zero_still_counts():
    """Weights come from lengths: padding cannot be told from token 0."""
    rows = [[{"inputs": np.array([0, 5], np.int32), "targets": np.array([0, 0, 7], np.int32)}]]
    assert encoder_decoder(fill(rows, LENGTHS), packed=True)["decoder_loss_weights"].sum() == 3


@pytest.mark.parametrize("pack", [True, False])
def test_feature_types_are_those_of_a_batch(pack):
    batch = encoder_decoder(fill(packed(examples(9, seed=1), pack), LENGTHS), pack)
    assert feature_types(LENGTHS, pack, encoder_decoder) == {k: (v.shape[1], v.dtype.type) for k, v in batch.items()}


def one_by_one(row, length, prefix, loss_on_inputs):
    """The features of a row for a decoder alone, written example by example."""
    features = {name: [] for name in ("input", "target", "weights", "causal", "segments")}
    for number, example in enumerate(row, start=1):
        inputs, targets = example["inputs"].tolist(), example["targets"].tolist()
        features["target"] += inputs + targets
        features["input"] += [0, *inputs, *targets][:-1]
        features["weights"] += [float(loss_on_inputs)] * len(inputs) + [1.0] * len(targets)
        features["causal"] += [1] * (len(inputs) + 1) + [0] * (len(targets) - 1)
        features["segments"] += [number] * (len(inputs) + len(targets))
    return {name: values + [0] * (length - len(values)) for name, values in features.items()}


@pytest.mark.parametrize(("prefix", "loss_on_inputs"), [(True, False), (False, True)])
@pytest.mark.parametrize("pack", [True, False])
def test_a_decoder_alone_reads_inputs_and_targets_as_one_sequence(pack, prefix, loss_on_inputs):
    rows = packed(examples(40, seed=3), pack)
    batch = decoder_only(fill(rows, LENGTHS), pack, prefix, loss_on_inputs)
    expected = [one_by_one(row, sum(LENGTHS.values()), prefix, loss_on_inputs) for row in rows]
    names = {"input": "decoder_input_tokens", "target": "decoder_target_tokens", "weights": "decoder_loss_weights"}
    names |= ({"causal": "decoder_causal_attention"} if prefix else {}) | (
        {"segments": "decoder_segment_ids"} if pack else {}
    )
    assert set(batch) == set(names.values())
    for ours, name in names.items():
        np.testing.assert_array_equal(batch[name], [row[ours] for row in expected], err_msg=name)
