"""The training loop: a step a batch, log lines without waiting for the device, checkpoints, a clean stop."""

import collections
import contextlib
import dataclasses
import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import jax
import orbax.checkpoint as ocp

from t5x_lite.data.batches import TrainBatches
from t5x_lite.errors import Preempted, RunError
from t5x_lite.parallel import hosts
from t5x_lite.train import checkpoint
from t5x_lite.train.metrics import MetricsWriter, progress_bar, progress_line, say
from t5x_lite.train.watchdog import Watchdog

# Steps that may be queued on the device: enough to keep it busy, few enough to bound memory.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the loop does besides stepping.

    Args:
      model_dir: named in messages.
      first_step: the step of the state to begin with.
      train_steps: the step to stop at.
      tokens_before: tokens seen up to `first_step`.
      log_period, save_period, eval_period: in steps; 0: never.
      max_nonfinite_steps: consecutive skipped steps before the run stops.
      tokens_per_batch: positions of a global batch, padding included, of inputs and targets.
      sequences_per_batch: rows of a global batch.
      flops_per_batch: of all devices together.
      peak_flops: of one device, or None where unknown.
      identity: of the data, for positions.
    """

    model_dir: str
    first_step: int
    train_steps: int
    tokens_before: int
    log_period: int
    save_period: int
    eval_period: int
    max_nonfinite_steps: int
    tokens_per_batch: int
    sequences_per_batch: int
    flops_per_batch: float
    peak_flops: float | None
    identity: dict

    def saves(self, step: int) -> bool:
        return step == self.train_steps or bool(self.save_period and step % self.save_period == 0)

    def evaluates(self, step: int) -> bool:
        return bool(self.eval_period) and (step == self.train_steps or step % self.eval_period == 0)

    def tokens_seen(self, step: int) -> int:
        return self.tokens_before + (step - self.first_step) * self.tokens_per_batch


class StopRequest:
    """Whether SIGTERM or Ctrl-C has asked the run to save and stop; a second signal ends it at once.

    Until `training` is called there is nothing to save: SIGTERM then raises Preempted where it arrives.

    Args:
      model_dir: named in messages.
    """

    def __init__(self, model_dir: str):
        self._model_dir = model_dir

    def __enter__(self) -> "StopRequest":
        self.signal: int | None = None
        self._before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        signal.signal(signal.SIGTERM, self._end)
        return self

    def training(self) -> None:
        """From now on a signal is kept until the loop asks for it."""
        if self.seen():  # what was called when the signal came has swallowed the exception
            raise self._unbegun()
        for number in self._before:
            signal.signal(number, self._keep)

    def _end(self, number, frame) -> None:
        self.signal = number
        self._restore()
        raise self._unbegun()

    def _unbegun(self) -> Preempted:
        return Preempted(
            f"stopped before the first step: {safe(self._model_dir)}; the same command starts again from there"
        )

    def _keep(self, number, frame) -> None:
        self.signal = number
        self._restore()
        say(
            f"t5x_lite: {hosts.host_words()}{signal.Signals(number).name} received: saving a checkpoint, then stopping",
            everywhere=True,
        )

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_) -> None:
        self._restore()

    def seen(self) -> bool:
        """Whether this process has been told to stop."""
        return self.signal is not None

    def seen_anywhere(self) -> "bool | jax.Array":
        """Whether any host has been told to; all of them ask in the same order. Does not wait for the answer."""
        return hosts.any_of(self.seen())


class Window:
    """Metrics of the finished steps since the last log line, kept on the device until the line is due."""

    def __init__(self, plan: Plan, batches: TrainBatches):
        self._plan, self._batches = plan, batches
        self._start()

    def _start(self) -> None:
        self._metrics: list[dict] = []
        self._since, self._waited = time.monotonic(), self._batches.waited

    def add(self, metrics: dict) -> None:
        self._metrics.append(metrics)

    def leave_out(self, seconds: float) -> None:
        """Does not count time that was spent on something else than training."""
        self._since += seconds

    def cut(self, step: int) -> dict:
        """Ends the window at `step`, the last one added, and makes its line."""
        metrics, seconds = jax.device_get(self._metrics), max(time.monotonic() - self._since, 1e-9)
        waited = self._batches.waited - self._waited
        self._start()
        return _line(metrics, step, self._plan, seconds, waited)


def _line(metrics: list[dict], step: int, plan: Plan, seconds: float, waited: float) -> dict:
    """A line of metrics.jsonl: means over the window's target tokens, norms of its last step."""
    counted = [m for m in metrics if m["finite"]] or metrics
    total = {k: float(sum(m[k] for m in counted)) for k in ("loss", "z_loss", "correct", "weight")}
    weight, last, steps = max(total["weight"], 1.0), metrics[-1], len(metrics)
    flops = plan.flops_per_batch * steps / seconds / jax.device_count()
    return {
        # Tokens are positions of the batch, padding included: what the device computes on.
        "step": step,
        "loss": total["loss"] / weight,
        "z_loss": total["z_loss"] / weight,
        "accuracy": total["correct"] / weight,
        "grad_norm": float(last["grad_norm"]),
        "update_norm": float(last["update_norm"]),
        "learning_rate": float(last["learning_rate"]),
        "tokens_seen": plan.tokens_seen(step),
        "sequences_per_second": plan.sequences_per_batch * steps / seconds,
        "tokens_per_second": plan.tokens_per_batch * steps / seconds,
        "tflops_per_device": flops / 1e12,
        "mfu": flops / plan.peak_flops if plan.peak_flops else None,
        "input_wait_fraction": min(waited / seconds, 1.0),
        "nonfinite_steps": int(last["nonfinite_steps"]),
    }


def run(
    plan: Plan,
    state: dict,
    train_step: Callable[[dict, dict], tuple[dict, dict]],
    batches: TrainBatches,
    checkpoints: ocp.CheckpointManager,
    writer: MetricsWriter,
    evaluate: Callable[[dict, int], bool],
    stop: StopRequest,
    watchdog: Watchdog,
    on_first_step: Callable[[], None] = lambda: None,
) -> dict:
    """Trains to `plan.train_steps` and returns the state, its last checkpoint committed.

    Args:
      plan: see `Plan`.
      state: the training state at step `plan.first_step`; donated.
      train_step: compiled.
      batches: iterable of batches and snapshots.
      checkpoints: where to save.
      writer: where metrics go.
      evaluate: called with (params, step) at every eval period and at the end; False where it was cut off.
      stop: signals, which are kept for the loop by now.
      watchdog: is told of each step that is done.
      on_first_step: called when the first step has finished on the device.

    Raises:
      Preempted: asked to stop; the state is committed.
      RunError: too many consecutive non-finite steps, or a checkpoint that cannot be written.
    """
    window, in_flight = Window(plan, batches), collections.deque()
    step, saved, began = plan.first_step, plan.first_step, time.monotonic()
    stopping, complete = False, True

    def heed(asked) -> None:
        nonlocal stopping
        if asked and not stopping:
            stopping = True
            # Here hosts are at one step, but have not read ahead equally far.
            batches.stop(batches.read_by(step) if hosts.count() > 1 else 0)

    def wait(left: int) -> None:
        """Waits until at most `left` steps are under way, logs the others, and ends a run that learns nothing."""
        while len(in_flight) > left:
            number, metrics, asked = in_flight.popleft()
            in_a_row = int(metrics["nonfinite_in_a_row"])
            window.add(metrics)
            watchdog.moved(f"step {number + 1} is under way")
            heed(asked)
            if number == plan.first_step + 1:
                on_first_step()
            # Lines are made of finished steps: the device has others to go on with, and nothing waits for a line.
            if number % plan.log_period == 0 or number == plan.train_steps:
                log(window.cut(number))
            if in_a_row >= plan.max_nonfinite_steps:
                raise RunError(
                    f"{in_a_row} steps in a row, up to step {number}, had a loss, gradient or update that is not "
                    "finite; they were skipped",
                    safe(plan.model_dir),
                    "lower the learning rate, set --gin.architecture.Architecture.dtype=float32 or look at the data, "
                    "then run the same command",
                )

    def log(line: dict) -> None:
        writer.train(line)
        pace = (time.monotonic() - began) / (line["step"] - plan.first_step)
        say(progress_line(line, plan.train_steps, pace * (plan.train_steps - line["step"])))

    with progress_bar(plan.first_step, plan.train_steps) as advance:
        for batch, snapshot in batches:
            if batch is not None:
                state, metrics = train_step(state, batch)
                step += 1
                advance()
                in_flight.append((step, metrics, stop.seen_anywhere()))
                wait(_IN_FLIGHT if step > plan.first_step + 1 else 0)
            if snapshot is not None and step != saved:
                position = checkpoint.Position(plan.identity, plan.tokens_seen(step), snapshot)
                watchdog.moved(f"the checkpoint of step {step} is being written")
                _save(checkpoints, plan.model_dir, step, state, position)
                watchdog.moved(f"step {step + 1} is under way")
                saved = step
            if hosts.count() == 1 and step < plan.train_steps:
                heed(stop.seen())
            # A run that is asked to stop saves first; its evaluation is made up for when it goes on.
            if batch is not None and plan.evaluates(step):
                wait(0)
                watchdog.moved(f"step {step} is being evaluated")
                paused = time.monotonic()
                complete = not stopping and evaluate(state["params"], step)
                window.leave_out(time.monotonic() - paused)
        wait(0)
    watchdog.moved(f"the checkpoint of step {step} is being committed")
    _committed(checkpoints, plan.model_dir, step)
    if step < plan.train_steps or not complete:
        raise preempted(plan, step)
    return state


def preempted(plan: Plan, step: int) -> Preempted:
    """What ends a run that was asked to stop."""
    return Preempted(
        f"stopped at step {step} of {plan.train_steps}, which is saved in {plan.model_dir}; "
        "the same command goes on from there"
    )


@contextlib.contextmanager
def failures(model_dir: str) -> Iterator[None]:
    """What the machine does to a run, as a RunError that says what is safe.

    Raises:
      RunError: for a full disk, a file that went away, or a device that has no room or fails.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        full = "RESOURCE_EXHAUSTED" in str(error)
        if not full:
            hosts.wait_for_loss()
        raise RunError(
            f"the device {'has not enough memory' if full else 'failed'}: {_first_line(error)}",
            safe(model_dir),
            "lower --gin.BATCH_SIZE, raise --gin.MICROBATCHES, set --gin.architecture.Architecture.remat=full or use "
            "another partition/*.gin, then run the same command"
            if full
            else "see to the device, then run the same command",
        ) from error
    except OSError as error:
        raise RunError(_first_line(error), safe(model_dir), "see to that, then run the same command") from error


def _save(checkpoints: ocp.CheckpointManager, model_dir: str, step: int, state: dict, position) -> None:
    try:
        checkpoint.save(checkpoints, step, state, position)
    except jax.errors.JaxRuntimeError:
        raise  # of a step that is still under way
    except (OSError, ValueError, RuntimeError) as error:
        raise _unsaved(model_dir, step, error) from error


def _committed(checkpoints: ocp.CheckpointManager, model_dir: str, step: int) -> None:
    try:
        checkpoints.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unsaved(model_dir, step, error) from error


def _unsaved(model_dir: str, step: int, error: Exception) -> RunError:
    if not isinstance(error, OSError):
        hosts.wait_for_loss()
    return RunError(
        f"a checkpoint up to step {step} could not be written: {_first_line(error)}",
        safe(model_dir),
        f"make room or rights for {model_dir}, then run the same command",
    )


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), type(error).__name__)
    # TensorStore names each file on the way to what the system said.
    found = re.search(r"os_error_code='(\d+)'", text)
    return os.strerror(int(found[1])) if found else text


def safe(model_dir: str) -> str:
    """What of a run can be relied on, as a sentence without its end."""
    steps = checkpoint.steps(model_dir)
    return f"the checkpoint of step {steps[-1]} is committed and safe" if steps else "no checkpoint is committed yet"
