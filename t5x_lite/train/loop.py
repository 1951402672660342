"""The training loop: a step a batch, log lines without waiting for the device, checkpoints, a clean stop."""

import collections
import dataclasses
import signal
import time
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from t5x_lite.data.batches import TrainBatches
from t5x_lite.errors import Preempted, RunError
from t5x_lite.train import checkpoint
from t5x_lite.train.metrics import MetricsWriter, progress_line, say

# Steps that may be queued on the device: enough to keep it busy, few enough to bound memory.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the loop does besides stepping.

    Args:
      model_dir: named in messages.
      train_steps: the step to stop at.
      log_period, save_period, eval_period: in steps; 0: never.
      max_nonfinite_steps: consecutive skipped steps before the run stops.
      tokens_per_batch: positions of a global batch, padding included, of inputs and targets.
      sequences_per_batch: rows of a global batch.
      flops_per_batch: of all devices together.
      peak_flops: of one device, or None where unknown.
      identity: of the data, for positions.
    """

    model_dir: str
    train_steps: int
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


class StopRequest:
    """Whether SIGTERM or Ctrl-C has asked the run to save and stop; a second signal ends it at once."""

    def __enter__(self) -> "StopRequest":
        self.signal: int | None = None
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _receive(self, number, frame) -> None:
        self.signal = number
        self._restore()
        say(f"t5x_lite: {signal.Signals(number).name} received: saving a checkpoint, then stopping")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_) -> None:
        self._restore()

    def agreed(self, step: int) -> bool:
        """The same answer on every host: one that is told to stop stops them all at one step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return bool(multihost_utils.reached_preemption_sync_point(step)) or self.signal is not None
        return self.signal is not None


class Window:
    """Metrics of the steps since the last log line, kept on the device until the line is due."""

    def __init__(self, plan: Plan, batches: TrainBatches):
        self._plan, self._batches = plan, batches
        self._start()

    def _start(self) -> None:
        self._metrics: list[dict] = []
        self._since, self._waited = time.monotonic(), self._batches.waited

    def __len__(self) -> int:
        return len(self._metrics)

    def add(self, metrics: dict) -> None:
        self._metrics.append(metrics)

    def leave_out(self, seconds: float) -> None:
        """Does not count time that was spent on something else than training."""
        self._since += seconds

    def cut(self, step: int) -> Callable[[], dict]:
        """Ends the window at `step`; the function returned waits for its values and makes the line."""
        metrics, plan = self._metrics, self._plan
        seconds = max(time.monotonic() - self._since, 1e-9)
        waited = self._batches.waited - self._waited
        self._start()
        return lambda: _line(jax.device_get(metrics), step, plan, seconds, waited)


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
        "tokens_seen": step * plan.tokens_per_batch,
        "sequences_per_second": plan.sequences_per_batch * steps / seconds,
        "tokens_per_second": plan.tokens_per_batch * steps / seconds,
        "tflops_per_device": flops / 1e12,
        "mfu": flops / plan.peak_flops if plan.peak_flops else None,
        "input_wait_fraction": min(waited / seconds, 1.0),
        "nonfinite_steps": int(last["nonfinite_steps"]),
        "nonfinite_in_a_row": max(int(m["nonfinite_in_a_row"]) for m in metrics),
    }


def run(
    plan: Plan,
    state: dict,
    start: int,
    train_step: Callable[[dict, dict], tuple[dict, dict]],
    batches: TrainBatches,
    checkpoints: ocp.CheckpointManager,
    writer: MetricsWriter,
    evaluate: Callable[[dict, int], None],
    stop: StopRequest,
    on_first_step: Callable[[], None] = lambda: None,
) -> dict:
    """Trains to `plan.train_steps` and returns the state, its last checkpoint committed.

    Args:
      plan: see `Plan`.
      state: the training state at step `start`; donated.
      start: its step.
      train_step: compiled.
      batches: iterable of batches and snapshots.
      checkpoints: where to save.
      writer: where metrics go.
      evaluate: called with (params, step) at every eval period and at the end.
      stop: signals.
      on_first_step: called when the first step has finished on the device.

    Raises:
      Preempted: asked to stop; the state is committed.
      RunError: too many consecutive non-finite steps, or a checkpoint that cannot be written.
    """
    window, in_flight = Window(plan, batches), collections.deque()
    step, saved, stopping, began, due = start, start, False, time.monotonic(), None

    def log(line: dict) -> None:
        in_a_row = line.pop("nonfinite_in_a_row")
        writer.train(line)
        if jax.process_index() == 0:
            pace = (time.monotonic() - began) / (step - start)
            say(progress_line(line, plan.train_steps, pace * (plan.train_steps - step)))
        if in_a_row >= plan.max_nonfinite_steps:
            raise RunError(
                f"{in_a_row} steps in a row, up to step {line['step']}, had a loss or gradient that "
                "is not finite; they were skipped",
                _safe(checkpoints),
                "lower the learning rate, set architecture.Architecture.dtype to 'float32' or look at the data, "
                "then run the same command",
            )

    for batch, snapshot in batches:
        if batch is not None:
            state, metrics = train_step(state, batch)
            step += 1
            window.add(metrics)
            in_flight.append(metrics["loss"])
            if step == start + 1:
                jax.block_until_ready(metrics["loss"])
                on_first_step()
            if len(in_flight) > _IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
        # A line is made one step late, when the device already has its next step: nothing waits for it.
        if due is not None:
            log(due())
            due = None
        if batch is not None and (step % plan.log_period == 0 or step == plan.train_steps):
            due = window.cut(step)
        if snapshot is not None and step != saved:
            _save(checkpoints, step, state, checkpoint.Position(plan.identity, snapshot))
            saved = step
        if batch is not None and plan.eval_period and (step % plan.eval_period == 0 or step == plan.train_steps):
            paused = time.monotonic()
            evaluate(state["params"], step)
            window.leave_out(time.monotonic() - paused)
        if not stopping and step < plan.train_steps and stop.agreed(step):
            stopping = True
            batches.stop()
    if due is not None:
        log(due())
    _committed(checkpoints, step)
    if step < plan.train_steps:
        raise Preempted(
            f"stopped at step {step} of {plan.train_steps}, which is saved in {plan.model_dir}; "
            "the same command goes on from there"
        )
    return state


def _save(checkpoints: ocp.CheckpointManager, step: int, state: dict, position: checkpoint.Position) -> None:
    try:
        checkpoint.save(checkpoints, step, state, position)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unsaved(checkpoints, step, error) from error


def _committed(checkpoints: ocp.CheckpointManager, step: int) -> None:
    try:
        checkpoints.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unsaved(checkpoints, step, error) from error


def _unsaved(checkpoints: ocp.CheckpointManager, step: int, error: Exception) -> RunError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return RunError(
        f"a checkpoint up to step {step} could not be written: {reason}",
        _safe(checkpoints),
        f"make room or rights for {checkpoints.directory}, then run the same command",
    )


def _safe(checkpoints: ocp.CheckpointManager) -> str:
    steps = checkpoint.steps(str(checkpoints.directory.parent))
    return f"The checkpoint of step {steps[-1]} is committed and safe" if steps else "No checkpoint is committed yet"
