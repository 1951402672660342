"""Global batches for the training loop, produced ahead in a thread, with the position after each save step.

Row r of the global batch always comes from the same data shard, so the batches
are the same on any number of hosts that divides the shards.
"""

import contextlib
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


def owned_shards(shards: int, process: int, processes: int) -> list[int]:
    """The data shards of one host: whole shards, in order.

    Raises:
      UserError: the shards do not divide over the hosts.
    """
    if shards % processes:
        raise UserError(
            f"DATA_SHARDS={shards} does not divide over {processes} hosts",
            "each host owns whole data shards",
            f"set --gin.DATA_SHARDS={processes * max(1, round(shards / processes))}",
        )
    each = shards // processes
    return list(range(process * each, (process + 1) * each))


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


def to_global(features: Mapping[str, np.ndarray], shardings: Mapping[str, jax.sharding.Sharding]) -> Batch:
    """This host's rows as its part of global arrays."""
    return {name: jax.make_array_from_process_local_data(shardings[name], rows) for name, rows in features.items()}


class TrainBatches:
    """Iterates over (batch, snapshot): the snapshot is the data position after that batch, or None.

    The position belongs to what has been handed out, not to what has been read ahead.

    Args:
      streams: of this host, by shard number.
      restore: positions by shard number to go on from, or None to start at the beginning.
      lengths: tokens of each feature in a row.
      rows: rows that each shard gives to a batch.
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
        pack: bool,
        convert: Convert,
        place: Callable[[Mapping[str, np.ndarray]], Batch],
        first_step: int,
        last_step: int,
        snapshot_after: Callable[[int], bool],
    ):
        self._streams, self._restore = streams, restore
        self._lengths, self._rows, self._pack = lengths, rows, pack
        self._convert, self._place = convert, place
        self._steps, self._snapshot_after = range(first_step + 1, last_step + 1), snapshot_after
        self._queue: queue.Queue = queue.Queue(maxsize=_AHEAD)
        self._first: list = []  # the first item, once it has been waited for
        self._stop, self._closed = threading.Event(), threading.Event()
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
                if self._stop.is_set():
                    self._queue.put((None, {s: streams[s].position() for s in streams}))
                    break
                rows = [row for shard in sorted(streams) for row in self._take(streams[shard], shard)]
                batch = self._place(self._convert(fill(rows, self._lengths), self._pack))
                snapshot = {s: streams[s].position() for s in streams} if self._snapshot_after(done) else None
                self._queue.put((batch, snapshot))
            self._queue.put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._queue.put(error)

    def _take(self, stream: Stream, shard: int):
        rows = stream.take(self._rows)
        if len(rows) < self._rows:
            raise UserError(
                f"data shard {shard} has no more examples",
                "the training split is empty or does not repeat",
                "set --gin.DATA_SHARDS lower, or give the task more data",
            )
        return rows

    def stop(self) -> None:
        """Asks for the end: after the few batches that are ready comes (None, snapshot), then nothing."""
        self._stop.set()

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
    parts: Sequence[int],
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
      parts: (index of this host, number of hosts).
    """
    host, hosts = parts
    each = batch_size // hosts
    number = 0
    while limit is None or number < limit:
        rows = stream.take(batch_size)
        if not rows:
            return
        rows += [[]] * (batch_size - len(rows))
        yield convert(fill(rows[host * each : (host + 1) * each], lengths), pack)
        number += 1
