"""Examples of tokenised files: every record once an epoch, whatever the shards, and exact resumption anywhere."""

import numpy as np
import pytest

from t5x_lite.data import examples
from t5x_lite.data.blocks import TokenBlocks
from t5x_lite.data.streams import Stream
from t5x_lite.data.token_files import TokenFile
from t5x_lite.data.tokens import Tokens
from tests.data.test_token_files import example, written

LENGTHS = {"inputs": 40, "targets": 16}
SHARDS = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function: records in each file -> paths. A record is its number, 3 to 14 times."""
    folder, made = tmp_path_factory.mktemp("files"), {}

    def make(*counts: int) -> list[str]:
        if counts not in made:
            starts = np.cumsum((0, *counts))
            name = "-".join(map(str, counts))
            made[counts] = [
                str(written(folder / f"{name}.{k}", [example(targets=[n] * (3 + n % 12)) for n in range(start, end)]))
                for k, (start, end) in enumerate(zip(starts, starts[1:]))
            ]
        return made[counts]

    return make


def blocks(paths, shard=0, shards=1, seed=0, epochs=1, make=None) -> TokenBlocks:
    def read(file: TokenFile, numbers):
        return file.records(numbers, ("targets",), 100_000)

    def as_they_are(records, rng):
        return [{"inputs": record["targets"], "targets": record["targets"][:16]} for record in records]

    return TokenBlocks(paths, read, make or as_they_are, shard, shards, seed=seed, epochs=epochs)


def numbers(found: TokenBlocks, most=10_000) -> list[int]:
    seen = []
    while len(seen) < most and (block := found.next()) is not None:
        seen += [int(record["inputs"][0]) for record in block]
    return seen


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("counts", [(50,), (9, 1, 0, 20, 3), (2500, 700), (1, 1, 1, 1), (0, 0, 5)])
def test_any_number_of_shards_partitions_the_records(files, counts, shards):
    parts = [numbers(blocks(files(*counts), shard, shards)) for shard in range(shards)]
    assert sorted(sum(parts, [])) == list(range(sum(counts)))


@pytest.mark.parametrize("counts", [(50,), (9, 1, 0, 20, 3), (1500, 700)])
def test_every_epoch_has_every_record_once_in_an_order_of_its_own(files, counts):
    total = sum(counts)
    seen = numbers(blocks(files(*counts), epochs=3))
    epochs = [seen[k * total : (k + 1) * total] for k in range(3)]
    assert len(seen) == 3 * total and all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] != sorted(epochs[0])
    assert numbers(blocks(files(*counts), epochs=3)) == seen
    assert numbers(blocks(files(*counts), seed=1, epochs=3)) != seen


def test_the_order_is_random_over_the_whole_file(files):
    seen = np.array(numbers(blocks(files(4000))))
    assert abs(np.corrcoef(seen, np.arange(4000))[0, 1]) < 0.05
    assert np.mean(np.abs(np.diff(seen)) < 40) < 0.04  # 2 % of pairs are so near


def test_an_evaluation_reads_in_order(files):
    assert numbers(blocks(files(300, 0, 20), seed=None)) == list(range(320))


def test_a_shard_without_records_ends(files):
    assert blocks(files(0, 0), epochs=None).next() is None
    assert numbers(blocks(files(1, 1, 1), shard=1, shards=4, epochs=None), most=3) == []
    assert blocks(files(2), shard=5, shards=7, epochs=None).next() is None


def test_long_records_come_in_smaller_blocks(files, monkeypatch):
    monkeypatch.setattr(TokenBlocks, "_BYTES", 200)
    paths = files(30, 30)
    sizes = np.concatenate([TokenFile(path).sizes for path in paths])
    found, seen = blocks(paths), []
    while block := found.next():
        taken = [int(record["inputs"][0]) for record in block]
        assert sizes[taken].sum() <= 200 and len(taken) > 1
        seen += taken
    assert sorted(seen) == list(range(60))
    monkeypatch.setattr(TokenBlocks, "_BYTES", 1)  # one at a time, but all
    assert sorted(numbers(blocks(paths))) == list(range(60))


def rows_of(rows):
    return [[{name: tokens.tolist() for name, tokens in record.items()} for record in row] for row in rows]


@pytest.mark.parametrize("taken", [0, 1, 7, 40, 400, 1001])
@pytest.mark.parametrize("bytes_of_a_block", [150, 2 << 20])
def test_a_position_anywhere_gives_the_same_continuation(files, monkeypatch, taken, bytes_of_a_block):
    monkeypatch.setattr(TokenBlocks, "_BYTES", bytes_of_a_block)

    def noisy(records, rng):
        """Twice each, one changed at random."""
        again = [{"inputs": r["targets"] + rng.integers(1, 9), "targets": r["targets"]} for r in records]
        return [{"inputs": r["targets"], "targets": r["targets"]} for r in records] + again

    def stream():
        return Stream(blocks(files(150, 0, 1, 80), 1, 2, epochs=None, make=noisy), LENGTHS, pack=True)

    first = stream()
    first.take(taken)
    position = first.position()
    expected = rows_of(first.take(300))
    second = stream()
    second.take(3)  # what was read before is forgotten
    second.restore(position)
    assert rows_of(second.take(300)) == expected


def tokens(caches, name="text_span_corruption") -> Tokens:
    from t5x_lite.data import token_files
    from t5x_lite.tasks import tokenized

    folder = str(caches / "text_span_corruption")
    ids = tokenized.ids(folder, None)
    features, maker = tokenized.maker(folder, name, token_files.features(folder), ids)
    return Tokens(name, folder, features, ids.size, maker)


def opened(task, shards, num_shards=SHARDS, seed=0):
    return examples.train_streams(task, shards, num_shards, LENGTHS, True, seed, False, lambda error: None)


def test_batches_do_not_depend_on_the_number_of_hosts(caches):
    def batch(hosts):
        found = []
        for host in range(hosts):
            owned = range(host * SHARDS // hosts, (host + 1) * SHARDS // hosts)
            streams = opened(tokens(caches), owned)
            found += [row for shard in owned for row in rows_of(streams[shard].take(40))]
        return found

    one = batch(1)
    assert len(one) == 160
    assert batch(2) == one == batch(4)


def test_seeds_and_shards_change_the_rows(caches):
    task = tokens(caches)
    first, again, other = (rows_of(opened(task, [0], seed=seed)[0].take(8)) for seed in (0, 0, 1))
    assert first == again != other
    by_shard = opened(task, [0, 1])
    assert rows_of(by_shard[0].take(8)) != rows_of(by_shard[1].take(8))


def test_an_objective_over_tokens_gives_full_rows(caches):
    rows = opened(tokens(caches), [0], num_shards=1)[0].take(600)  # several epochs
    used = {name: sum(len(record[name]) for row in rows for record in row) for name in LENGTHS}
    assert used["inputs"] > 0.99 * 600 * 40
    assert all(len(record[name]) <= length for row in rows for record in row for name, length in LENGTHS.items())
    assert all(record[name][-1] == 1 for row in rows for record in row for name in LENGTHS)


def test_evaluation_reads_the_split_in_order_and_with_the_same_masks(caches):
    def read(limit=None):
        ((name, stream),) = examples.evaluation_streams(
            tokens(caches), "validation", LENGTHS, False, 0, False, lambda error: None, limit
        )
        assert name == "text_span_corruption"
        return rows_of(stream.take(10_000))

    whole = read()
    assert 40 < len(whole) < 400
    assert read() == whole
    assert read(limit=7) == whole[:7]
    assert examples.members(tokens(caches), "test") == []
