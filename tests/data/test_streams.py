"""Streams and batches: exact resumption anywhere, the same batches on any number of hosts, every example once."""

import itertools
import re
import time
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from t5x_lite.data import batches, examples
from t5x_lite.data.blocks import DatasetBlocks
from t5x_lite.data.packing import encoder_decoder
from t5x_lite.data.streams import Stream
from t5x_lite.errors import UserError

LENGTHS = {"inputs": 40, "targets": 16}
SHARDS = 4


@pytest.fixture(scope="module")
def task(corpus):
    from t5x_lite.tasks import registry

    name = str(corpus / "vocabulary.model")
    train, validation = str(corpus / "train-*"), str(corpus / "validation.jsonl")
    return registry.prepare("text_span_corruption", None, name, train, validation)


def stream_of(dataset, pack=True, explain=lambda error: None):
    return Stream(DatasetBlocks(dataset, LENGTHS, explain), LENGTHS, pack)


def opened(task, shards, num_shards=SHARDS, seed=0, pack=True):
    return examples.train_streams(task, shards, num_shards, LENGTHS, pack, seed, False, lambda error: None)


def tokens(rows):
    """Rows as something that can be compared."""
    return [[{k: v.tolist() for k, v in example.items()} for example in row] for row in rows]


def numbered(count, longest=30):
    """A tf.data.Dataset of `count` examples that tell which they are."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    lengths = rng.integers(1, longest + 1, count)

    def one(number, length):
        return {"inputs": tf.repeat(number, length), "targets": tf.repeat(number, tf.minimum(length, 16))}

    return tf.data.Dataset.from_tensor_slices((np.arange(count, dtype=np.int32), lengths)).map(one)


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "one each"])
def test_a_stream_gives_every_example_once_whatever_is_asked_for(pack):
    dataset = numbered(150)
    whole = tokens(stream_of(dataset, pack).take(1000))
    seen = sorted(example["inputs"][0] for row in whole for example in row)
    assert seen == list(range(150))
    stream, taken = stream_of(dataset, pack), []
    while rows := stream.take(len(taken) % 5 + 1):
        taken += tokens(rows)
    assert taken == whole
    assert stream.take(3) == []


@pytest.mark.parametrize("taken", [0, 1, 7, 40, 41])
def test_a_position_anywhere_gives_the_same_continuation(taken):
    def stream():
        return stream_of(numbered(90).shuffle(20, seed=1).repeat(2))

    first = stream()
    first.take(taken)
    position = first.position()
    expected = tokens(first.take(1000))
    second = stream()
    second.take(3)  # what was read before is forgotten
    second.restore(position)
    assert tokens(second.take(1000)) == expected
    assert first.take(1) == second.take(1) == []


def test_resuming_goes_on_across_epochs_of_the_objective(task):
    """A shard of 50 documents gives some 80 rows an epoch: the positions lie in the first, second and later ones."""
    whole = opened(task, [1])[1]
    expected, positions = [], {}
    for rows in (1, 30, 130, 100):
        expected += tokens(whole.take(rows))
        positions[len(expected)] = whole.position()
    expected += tokens(whole.take(40))
    distinct = {str(row) for row in expected}
    assert len(distinct) > 0.9 * len(expected)  # each epoch is corrupted anew
    for at, position in positions.items():
        resumed = opened(task, [1])[1]
        resumed.restore(position)
        assert tokens(resumed.take(len(expected) - at)) == expected[at:], at


def test_batches_do_not_depend_on_the_number_of_hosts(task):
    def batch(hosts):
        found = []
        for host in range(hosts):
            owned = range(host * SHARDS // hosts, (host + 1) * SHARDS // hosts)
            streams = opened(task, owned)
            found += [row for shard in owned for row in tokens(streams[shard].take(2))]
        return found

    one = batch(1)
    assert len(one) == 8
    assert batch(2) == one
    assert batch(4) == one


def test_seeds_change_the_batches(task):
    first, again, other = (tokens(opened(task, [0], seed=seed)[0].take(8)) for seed in (0, 0, 1))
    assert first == again != other


class Layout:
    """Of 16 rows over the devices of several hosts: for each device its host, its first row and the end."""

    def __init__(self, *devices):
        self.devices = devices

    def devices_indices_map(self, shape):
        rows = ((host, slice(first, end)) for host, first, end in self.devices)
        return {Device(k, host): (own, slice(None)) for k, (host, own) in enumerate(rows)}


class Device(NamedTuple):
    number: int
    process_index: int


@pytest.mark.parametrize(
    ("host", "devices", "expected"),
    [
        # A batch cut over two hosts.
        (0, [(0, 0, 4), (0, 4, 8), (1, 8, 12), (1, 12, 16)], (range(8), [0, 1], [0, 1])),
        (1, [(0, 0, 4), (0, 4, 8), (1, 8, 12), (1, 12, 16)], (range(8, 16), [2, 3], [2, 3])),
        # Over two, each of which is two that compute the same rows: one of them saves the position.
        (1, [(0, 0, 8), (1, 0, 8), (2, 8, 16), (3, 8, 16)], (range(8), [0, 1], [])),
        (2, [(0, 0, 8), (1, 0, 8), (2, 8, 16), (3, 8, 16)], (range(8, 16), [2, 3], [2, 3])),
        # In the order of a torus, and with a shard on two hosts.
        (1, [(0, 0, 2), (1, 2, 4), (0, 8, 12), (1, 12, 16)], ([2, 3, 12, 13, 14, 15], [0, 3], [3])),
    ],
)
def test_a_host_reads_the_shards_of_the_rows_that_its_devices_hold(monkeypatch, host, devices, expected):
    monkeypatch.setattr(jax, "process_index", lambda: host)
    found = batches.share(SimpleNamespace(shape=(16, 40), sharding=Layout(*devices)), 4)
    assert (found.rows, found.shards, found.owned) == (list(expected[0]), *expected[1:])


# The host of each part of a batch, and data shards -> how often rows are read, and the fewest shards that read least.
READING = [
    ([0, 0, 1, 1], 2, 1, 2),
    ([0, 0, 1, 1], 4, 1, 2),
    ([0, 1, 0, 1], 2, 2, 4),  # each host has rows of both shards
    ([0, 1, 0, 1], 4, 1, 4),
    ([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3], 4, 2, 8),  # fsdp along one side of a 4x4, hosts of 2x2
    ([(0, 1), (2, 3)], 4, 2, 4),  # two hosts compute the same rows, and both must read them
]


@pytest.mark.parametrize(("hosts", "shards", "times", "least"), READING)
def test_how_often_rows_are_read(hosts, shards, times, least):
    hosts = np.array(hosts).reshape(len(hosts), -1)
    assert batches.times_read(hosts, shards) == times
    assert batches.shards_read_least(hosts, batch_size=64) == least
    # By the definition: every host reads the whole shards of its rows.
    rows = np.repeat(hosts, 64 // len(hosts), axis=0)
    read = {(host, row * shards // 64) for row, own in enumerate(rows) for host in own}
    assert times == len(read) / shards


def test_no_more_shards_than_the_batch_has_rows_for():
    hosts = np.array([[0], [1], [0], [1]])
    assert batches.shards_read_least(hosts, batch_size=6) == 2


def test_shards_that_do_not_divide_are_refused():
    message = r"DATA_SHARDS=6 does not divide over 4 hosts\. Each host reads whole .*--gin\.DATA_SHARDS=8"
    with pytest.raises(UserError, match=message):
        batches.check_hosts(6, 4)


@pytest.mark.parametrize(
    ("batch", "shards", "microbatches", "parts", "message"),
    [
        (12, 4, 1, 8, r"BATCH_SIZE=12 does not divide over 8 devices in 1 microbatch\..*multiple of 8\..*SIZE=16"),
        (8, 2, 4, 4, r"BATCH_SIZE=8 does not divide over 4 devices in 4 microbatches\..*multiple of 16.*MICROBATCHES"),
        (7, 1, 2, 1, r"BATCH_SIZE=7 does not divide over 1 device in 2 microbatches"),
        (10, 4, 1, 2, r"BATCH_SIZE=10 does not divide by DATA_SHARDS=4\..*BATCH_SIZE=8 or another --gin\.DATA_SHARDS"),
        (2, 4, 1, 1, r"BATCH_SIZE=2 does not divide by DATA_SHARDS=4\..*BATCH_SIZE=4"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(batch, shards, microbatches, parts, message):
    with pytest.raises(UserError, match=message):
        batches.check_batch(batch, shards, microbatches, parts)


def test_a_proposed_batch_fits_the_mesh_and_the_shards():
    for batch, shards, parts in itertools.product(range(1, 40), (1, 3, 4), (1, 8)):
        try:
            batches.check_batch(batch, shards, 1, parts)
        except UserError as error:
            proposed = int(re.search(r"--gin\.BATCH_SIZE=(\d+)", str(error))[1])
            batches.check_batch(proposed, shards, 1, parts)


def train_batches(streams, restore=None, first=0, last=10, snapshots=lambda step: step % 3 == 0):
    shards = sorted(streams)
    share = batches.Share(list(range(2 * len(shards))), shards, shards)
    return batches.TrainBatches(
        streams, restore, LENGTHS, 2, share, True, encoder_decoder, lambda rows: rows, first, last, snapshots
    )


def two_streams():
    return {s: stream_of(numbered(60).shuffle(30, seed=s).repeat()) for s in (0, 1)}


def equal(one, other):
    return all(np.array_equal(one[k], other[k]) for k in one | other)


def test_a_snapshot_is_the_position_after_its_batch_and_not_of_what_is_read_ahead():
    reader = train_batches(two_streams())
    reader.wait_for_first()
    found = list(reader)
    assert [snapshot is not None for _, snapshot in found] == [step % 3 == 0 for step in range(1, 11)]
    assert all(batch["encoder_input_tokens"].shape == (4, 40) for batch, _ in found)
    for at in (3, 9):
        resumed = list(train_batches(two_streams(), found[at - 1][1], first=at))
        assert len(resumed) == 10 - at
        assert all(equal(a, b) for (a, _), (b, _) in zip(found[at:], resumed))


def test_stopping_hands_over_what_is_ready_and_then_the_position():
    reader = train_batches(two_streams(), last=1000, snapshots=lambda step: False)
    taken = list(itertools.islice(iter(reader), 3))
    reader.stop()
    rest = list(reader)
    assert 1 <= len(rest) <= 6
    assert [batch is None for batch, _ in rest] == [False] * (len(rest) - 1) + [True]
    handed = taken + rest[:-1]
    going_on = list(train_batches(two_streams(), rest[-1][1], first=len(handed), last=len(handed) + 4))
    whole = list(train_batches(two_streams(), last=len(handed) + 4))
    assert all(equal(a, b) for (a, _), (b, _) in zip(handed + going_on, whole, strict=True))


def test_what_goes_wrong_while_reading_reaches_the_reader():
    reader = train_batches({0: stream_of(numbered(3), False)})
    next(iter(reader))
    with pytest.raises(UserError, match=r"data shard 0 has no more examples\..*--gin.DATA_SHARDS lower"):
        list(reader)
    with pytest.raises(UserError, match="no more examples"):
        train_batches({0: stream_of(numbered(1), False)}).wait_for_first()


def test_a_record_that_cannot_be_read_is_met_once():
    """tf.data may fuse a map with a batch, and then tries every element of the batch before it says what is wrong."""
    import tensorflow as tf

    met = []

    def broken(number):
        met.append(number)
        time.sleep(0.01)
        raise ValueError("no such record")

    dataset = tf.data.Dataset.range(1).map(
        lambda n: tf.ensure_shape(tf.numpy_function(broken, [n], tf.int64, stateful=False), [])
    )
    dataset = dataset.repeat().map(lambda n: tf.fill([3], n), num_parallel_calls=2).batch(500).unbatch()
    dataset = dataset.map(lambda x: {"inputs": x[None], "targets": x[None]})
    stream = stream_of(dataset, True, lambda error: OSError("explained"))
    with pytest.raises(OSError, match="explained"):
        stream.take(1)
    assert len(met) < 20


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "one each"])
def test_evaluation_covers_each_example_once(hosts, pack):
    parts = [
        list(
            batches.eval_batches(
                stream_of(numbered(37), pack), LENGTHS, 8, pack, encoder_decoder, None, range(host, 8, hosts)
            )
        )
        for host in range(hosts)
    ]
    assert len({len(part) for part in parts}) == 1
    seen = []
    for batch in itertools.chain(*parts):
        assert batch["encoder_input_tokens"].shape == (8 // hosts, 40)
        present = batch["decoder_loss_weights"] > 0
        seen += batch["decoder_target_tokens"][present].tolist()
    expected = [n for e in numbered(37).as_numpy_iterator() for n in e["targets"].tolist()]
    assert sorted(seen) == sorted(expected)
    assert len(list(batches.eval_batches(stream_of(numbered(37), False), LENGTHS, 8, False, encoder_decoder, 2))) == 2


def test_evaluation_streams_read_the_split_in_order(task):
    def read(limit=None):
        ((name, stream),) = examples.evaluation_streams(
            task, "validation", LENGTHS, False, 0, False, lambda error: None, limit
        )
        assert name == "text_span_corruption"
        return tokens(stream.take(10_000))

    whole = read()
    assert 40 < len(whole) < 400
    assert read() == whole
    assert read(limit=7) == whole[:7]
    assert examples.members(task, "test") == []
