"""What a run tells about itself: metrics.jsonl, TensorBoard events, and a line on the terminal."""

import contextlib
import errno
import fcntl
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.parallel import hosts
from t5x_lite.train.events import open_events

JSONL = "metrics.jsonl"
RESULTS = "results.jsonl"


def read_jsonl(path: epath.Path) -> list[dict]:
    """The complete lines of a JSONL file; a last line cut short by a kill is left out.

    Raises:
      UserError: another line is no JSON, or the file is no text.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8", str(error), "move that file away") from None
    lines = []
    # Not splitlines: a text in a line may hold other line separators of Unicode.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"line {number} of {path} is no JSON", str(error), "take that line out") from None
    return lines


def json_line(line: Mapping) -> str:
    """A mapping as one line of JSON, without its line end. JSON has no NaN: what is not finite becomes null."""
    return json.dumps({k: v if _finite(v) else None for k, v in line.items()}, ensure_ascii=False, allow_nan=False)


def _finite(value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _drop_after(path: epath.Path, step: int) -> None:
    """Takes the lines of later steps, and one cut short by a kill, out of a JSONL file."""
    if path.exists():
        with _locked(path):
            lines = [line for line in read_jsonl(path) if line["step"] <= step]
            write_whole(path, "".join(json_line(line) + "\n" for line in lines).encode())


@contextlib.contextmanager
def _locked(path: epath.Path) -> Iterator[int]:
    """Keeps a local file to one writer at a time; gives it, open for appending. Makes it where it is not there."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            # While we waited another process may have put a new file in its place.
            if os.path.exists(path) and os.fstat(file).st_ino == os.stat(path).st_ino:
                yield file
                return
        finally:
            os.close(file)


def write_whole(path: epath.Path, data: bytes) -> None:
    """Writes a file that has all of its content whenever it is there."""
    scratch = path.parent / f".{path.name}.new"
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


class MetricsWriter:
    """Appends to MODEL_DIR/metrics.jsonl and to a TensorBoard event file; only the first host writes.

    Lines of steps after `resume_step`, here and in eval/results.jsonl, are of a run that was cut off before
    its next checkpoint: they are taken out, since those steps are about to be done again.

    Args:
      model_dir: where to write.
      resume_step: the step that the run goes on from.
      active: False writes nothing.
    """

    def __init__(self, model_dir: str, resume_step: int, active: bool):
        self._active = active
        if not active:
            return
        directory = epath.Path(model_dir)
        for path in (directory / JSONL, directory / "eval" / RESULTS):
            _drop_after(path, resume_step)
        self._jsonl = (directory / JSONL).open("a")
        self._events = open_events(directory, resume_step + 1)
        if self._events is None:
            say("t5x_lite: tensorboard is not installed: no event files are written, metrics.jsonl holds it all")

    def train(self, line: Mapping[str, float | int | None]) -> None:
        """Appends one line of training metrics; it has a `step`."""
        if not self._active:
            return
        self._jsonl.write(json_line(line) + "\n")
        self._jsonl.flush()
        self.scalars(line["step"], {f"train/{k}": v for k, v in line.items() if k != "step" and v is not None})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars to the event file alone."""
        if self._active and self._events is not None:
            self._events.scalars(step, values)

    def close(self) -> None:
        if self._active:
            self._jsonl.close()
            if self._events is not None:
                self._events.close()


def append_result(folder: epath.Path, line: Mapping) -> None:
    """Adds an evaluation to results.jsonl of a folder, usually MODEL_DIR/eval; several processes may do so at once."""
    folder.mkdir(parents=True, exist_ok=True)
    path, data = folder / RESULTS, (json_line(line) + "\n").encode()
    if "://" in os.fspath(path):
        with path.open("ab") as file:
            file.write(data)
        return
    with _locked(path) as file:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            # Cut short by a kill.
            os.ftruncate(file, size := path.read_bytes().rfind(b"\n") + 1)
        if os.write(file, data) < len(data):
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, or 2 h 05 min."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def progress_line(line: Mapping, train_steps: int, seconds_left: float) -> str:
    """What the terminal shows at each log period."""
    parts = [
        f"step {line['step']}/{train_steps}",
        f"loss {line['loss']:.3f}",
        f"accuracy {line['accuracy']:.3f}",
        f"grad_norm {line['grad_norm']:.2g}",
        f"lr {line['learning_rate']:.2g}",
        f"{line['tokens_per_second']:,.0f} tokens/s",
    ]
    if line.get("mfu"):
        parts.append(f"MFU {100 * line['mfu']:.1f} %")
    if line["input_wait_fraction"] > 0.05:
        parts.append(f"input wait {100 * line['input_wait_fraction']:.0f} %")
    if line.get("nonfinite_steps"):
        parts.append(f"{line['nonfinite_steps']} non-finite steps skipped")
    return "  ".join(parts) + f"  ETA {duration(seconds_left)}"


@contextlib.contextmanager
def progress_bar(
    first: int, last: int | None, unit: str = "step", shown: bool = True
) -> Iterator[Callable[[], object]]:
    """A bar from `first` to `last`, on a terminal alone and where tqdm is; gives the function to call after each."""
    terminal = sys.stderr.isatty() and hosts.is_first()
    if not shown or not terminal or importlib.util.find_spec("tqdm") is None:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=last, initial=first, unit=f" {unit}", leave=False, dynamic_ncols=True) as bar:
        yield bar.update


def say(message: str, everywhere: bool = False) -> None:
    """A line of progress on stderr, so that stdout holds results alone; above the bar where one is drawn.

    Of several hosts the first one speaks, or `everywhere` each.
    """
    if not (everywhere or hosts.is_first()):
        return
    if "tqdm" in sys.modules:  # a bar may be drawn
        sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)
    else:
        print(message, file=sys.stderr)
    sys.stderr.flush()
