"""Which checkpoints eval evaluates: given ones, all of a model directory, or each as it appears."""

import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from t5x_lite import model_dir
from t5x_lite.errors import UserError
from t5x_lite.train import checkpoint
from t5x_lite.train.metrics import JSONL, say

# Seconds between two looks, unless --poll_seconds says otherwise, and seconds that a deletion may take.
_POLL, _DELETION = 30.0, 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to evaluate.

    Args:
      references: for `checkpoint.find`.
      several_steps: all checkpoints of the one reference, and not the one that it names.
      follow: also those that appear later.
      poll: seconds between two looks.
    """

    references: list[str]
    several_steps: bool
    follow: bool
    poll: float

    def wait_for_first(self) -> None:
        """Returns when a directory that is followed has a checkpoint, or never will."""
        if not self.follow:
            return
        directory, said = epath.Path(self.references[0]), False
        while not checkpoint.steps(str(directory)) and not (directory / model_dir.DONE).exists():
            if not said:
                there = "has no checkpoint yet" if directory.is_dir() else "is not there yet"
                say(f"{directory} {there}: waiting, looking every {self.poll:g} s")
                said = True
            time.sleep(self.poll)

    def steps(
        self, directory: epath.Path, save_period: int = 0, evaluated: Callable[[], set[int]] = set
    ) -> Iterator[int]:
        """The steps to evaluate; where they are followed, until the run is done.

        Args:
          directory: the model directory.
          save_period: of its run. Of the steps that it has saved by that, those that are there no more are said, once.
          evaluated: gives the steps that need no evaluation.
        """
        seen, said = set(), False
        while True:
            # Looked at first: what is committed after it is asked for would be missed.
            done = (directory / model_dir.DONE).exists() or not self.follow
            new = [step for step in checkpoint.steps(str(directory)) if step not in seen]
            if self.follow and new:
                gone = set(saved(directory, save_period, max(new))) - seen.union(new)
                seen |= gone
                _say_gone(sorted(gone - evaluated()) if gone else [])
            for step in new:
                seen.add(step)
                yield step
            if done:
                return
            if new:
                said = False
            elif not said:
                after = f" after step {max(seen)}" if seen else ""
                say(f"waiting for a checkpoint{after} in {directory}, looking every {self.poll:g} s")
                said = True
            time.sleep(0 if new else self.poll)


def saved(directory: epath.Path, save_period: int, newest: int) -> range:
    """The steps up to `newest` that a run has saved in its directory, as far as its period and first metrics tell."""
    try:
        with (directory / JSONL).open() as file:
            first = json.loads(file.readline())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return range(0)  # not the directory of a run
    return range(-(-first // save_period) * save_period, newest + 1, save_period) if save_period else range(0)


def _say_gone(steps: Sequence[int]) -> None:
    if not steps:
        return
    if len(steps) == 1:
        say(f"step {steps[0]} was deleted before it was evaluated")
    elif len(steps) <= 5:
        say(f"steps {', '.join(map(str, steps[:-1]))} and {steps[-1]} were deleted before they were evaluated")
    else:
        say(f"{len(steps):,} steps from {steps[0]} to {steps[-1]} were deleted before they were evaluated")


def plan(args) -> Plan:
    """What a command line asks for.

    Raises:
      UserError: it asks for what does not go together.
    """
    if args.poll_seconds is not None and not args.follow:
        raise UserError(
            f"--poll_seconds={args.poll_seconds:g} is given without --follow", "it polls nothing", "leave it out"
        )
    if len(args.checkpoint) > 1:
        if args.follow or any(_every(reference) for reference in args.checkpoint):
            raise UserError(
                "several --checkpoint are given with @all or --follow",
                "together they are one model, an ensemble, and each must name one checkpoint",
                "give one --checkpoint, or several with @STEP, @latest or @best",
            )
        if args.output_dir is None:
            raise UserError(
                "several --checkpoint are given without --output_dir",
                "results of an ensemble are not those of one of its models, in whose eval/ they would stand",
                "name a folder with --output_dir",
            )
        return Plan(args.checkpoint, False, False, 0)
    [reference] = args.checkpoint
    if args.follow and "@" in reference and not _every(reference):
        raise UserError(
            f"--checkpoint={reference} is given with --follow",
            "what is followed are all checkpoints of a model directory",
            f"write --checkpoint={reference.rpartition('@')[0]}",
        )
    several = args.follow or _every(reference)
    name = reference.removesuffix("@all")
    return Plan([name], several, args.follow, args.poll_seconds or _POLL)


def _every(reference: str) -> bool:
    return reference.endswith("@all")


def restored(model: model_dir.LaidOut, step: int, follow: bool) -> model_dir.Restored | None:
    """A checkpoint; None, which is said, where it has been deleted meanwhile.

    Args:
      model: its model directory, laid out.
      step: of the checkpoint.
      follow: its run may be going on, and deletes older checkpoints.

    Raises:
      UserError: as `model_dir.LaidOut.restore`, of a checkpoint that stays.
    """
    before = _files(model.directory, step)
    try:
        return model.restore(step)
    except Exception:  # whatever reading half of it ends in
        may_go = follow or _files(model.directory, step) < before
        if not _disappears(model.directory, step, _DELETION if may_go else 0):
            raise
    _forget_tasks()
    say(f"step {step} was deleted before it could be read: left out")
    return None


def _forget_tasks() -> None:
    """Takes away the tasks of Orbax that failed: each would print a traceback of its own, now or at the end."""
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = before


def _files(directory: epath.Path, step: int) -> set[str]:
    """The files of a checkpoint."""
    folder = directory / checkpoint.FOLDER / str(step)
    return {f"{where}/{name}" for where, _, names in folder.walk() for name in names}


def _disappears(directory: epath.Path, step: int, seconds: float) -> bool:
    """Whether a checkpoint is gone, or will be within some seconds: a folder is deleted file by file."""
    end = time.monotonic() + seconds
    while step in checkpoint.steps(str(directory)):
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)
    return True
