"""Global batches for the training loop, produced ahead in a thread, with the position after each save step.

Row r of the global batch always comes from the same data shard, so the batches
are the same on any number of hosts that divides the shards. A host reads the
shards whose rows its devices hold, wherever the mesh has put them.
"""

import contextlib
import dataclasses
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from t5x_lite.data.packing import Convert, fill
from t5x_lite.data.streams import Stream
from t5x_lite.errors import UserError

Batch = dict[str, jax.Array]

# Batches ready on the device before they are needed.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Share:
    """What one host has of the global batch.

    Args:
      rows: the numbers of the rows that its devices hold, ascending.
      shards: the data shards that they come from, ascending.
      owned: those of the shards whose position it saves; every shard is owned by one host.
    """

    rows: list[int]
    shards: list[int]
    owned: list[int]


def share(batch: jax.ShapeDtypeStruct, shards: int) -> Share:
    """The share of this host.

    Where the mesh cuts a batch over the hosts, as it mostly does, they have different rows; hosts that compute the
    same rows together, cut over another axis, read the same shards, which give all of them the same.

    Args:
      batch: shape and sharding of a feature of the global batch.
      shards: data shards, each of which gives the same number of rows, one after the other.
    """
    size = batch.shape[0]
    by_host: dict[int, set[int]] = {}
    for device, index in batch.sharding.devices_indices_map(batch.shape).items():
        by_host.setdefault(device.process_index, set()).update(range(*index[0].indices(size)))
    each = size // shards
    readers = {host: {row // each for row in rows} for host, rows in by_host.items()}
    own = jax.process_index()
    before = set().union(*(found for host, found in readers.items() if host < own))
    return Share(sorted(by_host[own]), sorted(readers[own]), sorted(readers[own] - before))


def times_read(hosts: np.ndarray, shards: int) -> float:
    """How often each row of a batch is read, by all hosts together: 1 where each reads its own rows alone.

    Args:
      hosts: [parts, copies] host of each device, in the order of the parts that the mesh cuts a batch into.
      shards: data shards, which are read whole.
    """
    parts = np.arange(len(hosts))
    first, end = parts * shards // len(hosts), -(-(parts + 1) * shards // len(hosts))
    read = {(host, shard) for own, a, b in zip(hosts, first, end) for host in own for shard in range(a, b)}
    return len(read) / shards


def shards_read_least(hosts: np.ndarray, batch_size: int) -> int:
    """The fewest data shards with which the hosts together read no row more often than they must.

    Args:
      hosts: as above.
      batch_size: rows of the batch, which the shards must divide.
    """
    count, parts = len(np.unique(hosts)), len(hosts)
    choices = [n for n in range(count, max(count, parts) + 1, count) if batch_size % n == 0]
    return min(choices, key=lambda n: (times_read(hosts, n), n), default=count)


def check_hosts(shards: int, hosts: int) -> None:
    """Refuses data shards that do not divide over the hosts.

    Raises:
      UserError: they do not.
    """
    if shards % hosts:
        raise UserError(
            f"DATA_SHARDS={shards} does not divide over {hosts} hosts",
            "each host reads whole data shards",
            f"set --gin.DATA_SHARDS={hosts * max(1, round(shards / hosts))}",
        )


def check_batch(batch_size: int, shards: int, microbatches: int, parts: int) -> None:
    """Refuses a batch that the data shards cannot fill evenly, or that does not divide over the mesh.

    Args:
      batch_size: rows of the global batch.
      shards: data shards, each of which gives the same number of rows.
      microbatches: parts computed one after the other.
      parts: how many devices' shares the mesh cuts a batch into.

    Raises:
      UserError: it does not divide.
    """
    unit = microbatches * parts
    both = math.lcm(unit, shards)  # what is proposed satisfies either
    proposed = f"set --gin.BATCH_SIZE={both * max(1, round(batch_size / both))}"
    if batch_size % unit:
        raise UserError(
            f"BATCH_SIZE={batch_size} does not divide over {parts} device{'s' * (parts != 1)} "
            f"in {microbatches} microbatch{'es' * (microbatches != 1)}",
            f"every device takes the same number of rows, so it must be a multiple of {unit}",
            f"{proposed}, --gin.MICROBATCHES or another partition",
        )
    if batch_size % shards:
        raise UserError(
            f"BATCH_SIZE={batch_size} does not divide by DATA_SHARDS={shards}",
            "each data shard gives the same number of rows to a batch",
            f"{proposed} or another --gin.DATA_SHARDS",
        )


def to_global(
    features: Mapping[str, np.ndarray], shapes: Mapping[str, jax.ShapeDtypeStruct], rows: Sequence[int]
) -> Batch:
    """This host's rows as its part of global arrays.

    Args:
      features: [this host's rows, length] of each feature.
      shapes: of the global arrays, with shardings.
      rows: the numbers of this host's rows in the global batch, ascending.
    """
    place = {row: k for k, row in enumerate(rows)}

    def one(own: np.ndarray, shape: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.sharding.is_fully_addressable:
            return jax.device_put(own, shape.sharding)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, end, _ = index[0].indices(shape.shape[0])  # rows that follow each other there do so here
            return own[place[first] : place[first] + end - first, *index[1:]]

        return jax.make_array_from_callback(shape.shape, shape.sharding, part)

    return {name: one(own, shapes[name]) for name, own in features.items()}


class TrainBatches:
    """Iterates over (batch, snapshot): the snapshot is the data position after that batch, or None.

    The position belongs to what has been handed out, not to what has been read ahead.

    Args:
      streams: of this host, by shard number.
      restore: positions by shard number to go on from, or None to start at the beginning.
      lengths: tokens of each feature in a row.
      rows: rows that each shard gives to a batch.
      share: what this host has of the batch.
      pack: rows may hold several examples.
      convert: what the model reads, from inputs and targets.
      place: puts this host's rows onto the devices.
      first_step: the step that the first batch trains.
      last_step: the step after which no batch is needed.
      snapshot_after: whether a snapshot is wanted after the batch that completes a given step.
    """

    def __init__(
        self,
        streams: Mapping[int, Stream],
        restore: Mapping[int, bytes] | None,
        lengths: Mapping[str, int],
        rows: int,
        share: Share,
        pack: bool,
        convert: Convert,
        place: Callable[[Mapping[str, np.ndarray]], Batch],
        first_step: int,
        last_step: int,
        snapshot_after: Callable[[int], bool],
    ):
        self._streams, self._restore = streams, restore
        self._lengths, self._rows, self._share, self._pack = lengths, rows, share, pack
        self._convert, self._place = convert, place
        self._steps, self._snapshot_after = range(first_step + 1, last_step + 1), snapshot_after
        self._queue: queue.Queue = queue.Queue(maxsize=_AHEAD)
        self._first: list = []  # the first item, once it has been waited for
        self._last: int | None = None  # the step to end after, once there is one
        self._closed = threading.Event()
        self.waited = 0.0  # seconds that the consumer has waited for a batch
        self._thread = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            streams = self._streams
            for shard, position in (self._restore or {}).items():
                streams[shard].restore(position)
            self._restore = None
            for done in self._steps:
                if self._closed.is_set():
                    return
                if self._last is not None and done > self._last:
                    self._queue.put((None, self._positions()))
                    break
                taken = {s: self._take(streams[s], s) for s in self._share.shards}
                rows = [taken[number // self._rows][number % self._rows] for number in self._share.rows]
                batch = self._place(self._convert(fill(rows, self._lengths), self._pack))
                self._queue.put((batch, self._positions() if self._snapshot_after(done) else None))
            self._queue.put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._queue.put(error)

    def _positions(self) -> dict[int, bytes]:
        return {shard: self._streams[shard].position() for shard in self._share.owned}

    def _take(self, stream: Stream, shard: int):
        rows = stream.take(self._rows)
        if len(rows) < self._rows:
            raise UserError(
                f"data shard {shard} has no more examples",
                "the training split is empty or does not repeat",
                "set --gin.DATA_SHARDS lower, or give the task more data",
            )
        return rows

    def stop(self, step: int = 0) -> None:
        """Asks for the end: after the batch of that step, and the few that are ready, comes (None, snapshot)."""
        self._last = step

    @staticmethod
    def read_by(step: int) -> int:
        """The last step whose batch may have been begun on any host when one has taken that of `step`."""
        return step + _AHEAD + 1  # those that are ready, and one that is being made

    def close(self) -> None:
        """Ends the thread and lets go of the streams; to be called however the training ends."""
        self._closed.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # the thread may wait for a place in the queue
                self._queue.get_nowait()
            self._thread.join(timeout=0.05)
        for stream in self._streams.values():
            stream.close()

    def wait_for_first(self) -> None:
        """Returns when the first batch is ready; raises what kept it from being read."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        self._first = [item]

    def __iter__(self) -> Iterator[tuple[Batch | None, dict[int, bytes] | None]]:
        while True:
            start = time.monotonic()
            item = self._first.pop() if self._first else self._queue.get()
            self.waited += time.monotonic() - start
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item


def eval_batches(
    stream: Stream,
    lengths: Mapping[str, int],
    batch_size: int,
    pack: bool,
    convert: Convert,
    limit: int | None,
    own: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one pass over a stream, the last one filled up with empty rows of weight 0.

    Every host reads the whole stream and keeps its own rows.

    Args:
      stream: of an evaluation split.
      lengths: tokens of each feature in a row.
      batch_size: rows of a global batch.
      pack: rows may hold several examples.
      convert: what the model reads, from inputs and targets.
      limit: most batches; None: all.
      own: the numbers of the rows that this host keeps; None: all.
    """
    own = range(batch_size) if own is None else own
    number = 0
    while limit is None or number < limit:
        rows = stream.take(batch_size)
        if not rows:
            return
        rows += [[]] * (batch_size - len(rows))
        yield convert(fill([rows[k] for k in own], lengths), pack)
        number += 1
