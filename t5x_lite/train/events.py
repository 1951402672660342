"""TensorBoard event files of scalars, written without TensorFlow."""

import time
from collections.abc import Mapping

from etils import epath

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError:
    # Training on tokens does without: a rented machine may have JAX's own packages and nothing else.
    Event = None


def open_events(directory: epath.Path, first_step: int | None = None) -> "EventFile | None":
    """A new `EventFile`, or None where tensorboard is not installed."""
    return None if Event is None else EventFile(directory, first_step)


class EventFile:
    """One new event file; what is written is readable at once.

    Args:
      directory: of the file, local or gs://; it exists.
      first_step: the first step to come, of a run that goes on: TensorBoard drops what earlier files of the
        directory hold from this step on. None: drops nothing.
    """

    def __init__(self, directory: epath.Path, first_step: int | None = None):
        now = time.time()
        self._file = (directory / f"events.out.tfevents.{int(now * 1000)}.t5x_lite").open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        if first_step is not None:
            self._write(Event(wall_time=now, step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curve of each tag."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Ends the file."""
        self._records.close()
