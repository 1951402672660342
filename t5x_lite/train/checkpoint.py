"""Checkpoints: one Orbax composite a step, the training state beside the position of every data shard.

    MODEL_DIR/checkpoints/STEP/state   step, params, opt_state and skipped steps: a standard Orbax pytree
    MODEL_DIR/checkpoints/STEP/data    what the data pipeline needs to go on, a file for each data shard

Orbax writes a step under a temporary name and renames it when every host has
finished, so a directory that is called STEP is whole.
"""

import dataclasses
import json
import os
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.parallel import hosts
from t5x_lite.train import metrics, results

FOLDER = "checkpoints"


_POSITION = "position.json"


@dataclasses.dataclass(frozen=True)
class Position:
    """Where the data pipeline stands after a step.

    Args:
      identity: what the shards are a cut of; a position means something only under the same.
      tokens_seen: positions of all batches so far, padding included, of inputs and targets.
      shards: opaque bytes for each data shard; those that this host owns when it is written, reads when it is read.
    """

    identity: Mapping[str, object]
    tokens_seen: int
    shards: Mapping[int, bytes]


class PositionHandler(ocp.CheckpointHandler):
    """Writes and reads `Position` as the item `data`; every host writes the shards that it owns."""

    def save(self, directory: epath.Path, args: "SavePosition") -> None:
        position = args.position
        if jax.process_index() == 0:
            text = json.dumps({"identity": dict(position.identity), "tokens_seen": position.tokens_seen}, indent=1)
            (directory / _POSITION).write_text(text)
        for shard, state in position.shards.items():
            (directory / f"shard_{shard:05d}").write_bytes(state)

    def restore(self, directory: epath.Path, args: "RestorePosition") -> Position:
        saved = json.loads((directory / _POSITION).read_text())
        return Position(**saved, shards={s: (directory / f"shard_{s:05d}").read_bytes() for s in args.shards})


@ocp.args.register_with_handler(PositionHandler, for_save=True)
@dataclasses.dataclass
class SavePosition(ocp.args.CheckpointArgs):
    position: Position


@ocp.args.register_with_handler(PositionHandler, for_restore=True)
@dataclasses.dataclass
class RestorePosition(ocp.args.CheckpointArgs):
    shards: list[int]


def manager(model_dir: str, keep: int | None, read_only: bool = False) -> ocp.CheckpointManager:
    """The Orbax manager of a model directory. Saving is asynchronous; `wait_until_finished` surfaces its errors."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(keep) if keep else None,
        enable_async_checkpointing=not read_only,
        # Otherwise a host may write its positions into a folder that the first one has yet to make.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=hosts.count() == 1),
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
    )
    return ocp.CheckpointManager(
        _absolute(model_dir) / FOLDER,
        options=options,
        item_handlers={"state": ocp.StandardCheckpointHandler(), "data": PositionHandler()},
    )


def _absolute(path: str | os.PathLike) -> epath.Path:
    """Orbax wants an absolute path; those of an object store, gs://, are."""
    return epath.Path(path) if "://" in os.fspath(path) else epath.Path(path).absolute()


def save(checkpoints: ocp.CheckpointManager, step: int, state: dict, position: Position) -> None:
    """Starts to write a checkpoint. The state's arrays may be donated as soon as this returns."""
    checkpoints.save(
        step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=SavePosition(position)), force=True
    )


def restore(
    checkpoints: ocp.CheckpointManager, step: int, abstract_state: dict, shards: list[int]
) -> tuple[dict, Position]:
    """Reads a checkpoint onto the shardings of `abstract_state`, whatever mesh wrote it.

    Args:
      checkpoints: from `manager`.
      step: a committed step that `check` has found to fit.
      abstract_state: ShapeDtypeStructs with shardings.
      shards: the data shards that this host reads.
    """
    restored = checkpoints.restore(
        step, args=ocp.args.Composite(data=RestorePosition(shards), state=ocp.args.StandardRestore(abstract_state))
    )
    return restored["state"], restored["data"]


def check(directory: epath.Path, abstract: dict, identity: Mapping[str, object] | None) -> None:
    """Compares a checkpoint with a job by its metadata alone, before anything is compiled or read.

    Args:
      directory: MODEL_DIR/checkpoints/STEP.
      abstract: the entries of the state that will be read.
      identity: of the data, for a run that goes on from its position; None for a run that only starts there.

    Raises:
      UserError: parameters of another shape, another optimizer, or another cut of the data.
    """
    with _reader() as reader:
        saved = reader.metadata(directory).item_metadata["state"].tree
    if identity is None:
        _check_shapes({name: saved.get(name) for name in abstract}, abstract, directory, resumed=False)
        return
    _check_shapes(saved, abstract, directory, resumed=True)
    before, now = position_of(directory)["identity"], json.loads(json.dumps(dict(identity)))
    for name in sorted(now.keys() | before.keys()):
        if now.get(name) != before.get(name):
            raise UserError(
                f"{name} is {now.get(name)!r}, but the data position in {directory} was saved under "
                f"{before.get(name)!r}",
                "the stream of examples would not be the one that the run has seen so far",
                f"set {name} back, or begin the new data in another --gin.MODEL_DIR "
                f"with --gin.INITIAL_CHECKPOINT_PATH={directory}",
            )


def position_of(directory: epath.Path) -> dict | None:
    """`identity` and `tokens_seen` of a checkpoint's data position; None where it has none: it was converted."""
    path = directory / "data" / _POSITION
    return json.loads(path.read_text()) if path.exists() else None


def restore_part(directory: epath.Path, abstract: dict) -> dict:
    """Reads only the entries of the state that `abstract` names (`params`, `step`, ...), onto their shardings.

    Args:
      directory: MODEL_DIR/checkpoints/STEP.
      abstract: nested dict of ShapeDtypeStructs with shardings.

    Raises:
      UserError: a parameter is missing or of another shape.
    """
    with _reader() as reader:
        saved = reader.metadata(directory).item_metadata["state"].tree
        _check_shapes({name: saved.get(name) for name in abstract}, abstract, directory, resumed=False)
        part = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        return reader.restore(directory, args=ocp.args.Composite(state=part))["state"]


def _reader() -> ocp.Checkpointer:
    """Reads the state of one checkpoint, in part where asked."""
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler()))


def _leaves(tree) -> dict[str, tuple[int, ...]]:
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): tuple(leaf.shape)
        for path, leaf in flat
        if hasattr(leaf, "shape")
    }


def _check_shapes(saved, wanted, where: epath.Path, resumed: bool) -> None:
    saved, wanted = _leaves(saved), _leaves(wanted)
    if any(n.startswith("opt_state") for n in wanted) and not any(n.startswith("opt_state") for n in saved):
        raise UserError(
            f"the checkpoint {where} holds no optimizer state",
            "it was converted, so it is a start and not a run to resume",
            "Set --gin.INITIAL_CHECKPOINT_PATH to its directory, and --gin.MODEL_DIR to a new one",
        )
    for name in sorted(wanted, key=lambda n: (not n.startswith("params"), n)):
        found = saved.get(name)
        if found == wanted[name]:
            continue
        optimizer = name.startswith("opt_state")
        held = f"has shape {list(found)}" if found is not None else "is absent"
        raise UserError(
            f"{name} {held} in the checkpoint {where}, but this job needs {list(wanted[name])}",
            "the checkpoint is of another " + ("optimizer" if optimizer else "model"),
            _remedy(optimizer, resumed),
        )
    extra = sorted(n for n in saved if n.startswith("params") and n not in wanted)
    if extra and any(n.startswith("params") for n in wanted):
        raise UserError(
            f"the checkpoint {where} holds {extra[0]}, which this job's model does not have",
            "the checkpoint is of another model",
            _remedy(False, resumed),
        )


def _remedy(optimizer: bool, resumed: bool) -> str:
    if resumed:
        return "use the same optim/*.gin" if optimizer else "use the gin file of its model, or another --gin.MODEL_DIR"
    if optimizer:
        return "use the same optim/*.gin, or begin its state anew with --gin.INITIAL_OPTIMIZER_STATE=False"
    return "use the gin file of its model, or another checkpoint"


def save_params(model_dir: str, step: int, params: dict) -> None:
    """Writes a checkpoint of parameters alone, and returns when it is committed."""
    state = {"step": np.asarray(step, np.int32), "params": params}
    with manager(model_dir, keep=None) as checkpoints:
        checkpoints.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), force=True)


def contents(directory: epath.Path) -> dict:
    """What the state of a checkpoint holds, as a tree of metadata: `params`, `step`, and mostly `opt_state`."""
    with _reader() as reader:
        return reader.metadata(directory).item_metadata["state"].tree


def steps(model_dir: str) -> list[int]:
    """The committed steps of a model directory, ascending."""
    folder = epath.Path(model_dir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "state").exists())


def find(reference: str, flag: str = "--checkpoint") -> tuple[epath.Path, int]:
    """The model directory and step that `DIR`, `DIR@latest`, `DIR@best`, `DIR@STEP` or `DIR/checkpoints/STEP` means.

    The best step is that of the best mean over the tasks in DIR/eval/results.jsonl, see results.py.

    Raises:
      UserError: it is no model directory, or has no such step, or none of its steps has been evaluated.
    """
    name, at, which = reference.rpartition("@")
    directory = _absolute(name if at else reference)
    if not at and directory.parent.name == FOLDER and directory.name.isdigit():
        directory, which = directory.parent.parent, directory.name
    elif not at:
        which = "latest"
    if not directory.is_dir():
        raise UserError(f"{flag}={reference} is no directory", "nothing is there", f"Correct the path after {flag}")
    found = steps(directory)
    if not found and (directory / FOLDER).is_dir():
        raise UserError(
            f"{flag}={reference} has no committed checkpoint yet",
            "its run has not reached its first --gin.SAVE_PERIOD, or was cut off before",
            "wait for it, or go on with its train command",
        )
    if not found:
        raise UserError(
            f"{flag}={reference} is no model directory",
            f"it has no {FOLDER}/STEP with a committed checkpoint",
            "give the MODEL_DIR of a training run, or make one with t5x_lite convert",
        )
    if which == "latest":
        return directory, found[-1]
    if which == "best":
        return directory, _best(directory, found, f"{flag}={reference}")
    if not which.isdigit() or int(which) not in found:
        only = "only eval takes @all: " if which == "all" else ""
        raise UserError(
            f"{flag}={reference} names no checkpoint",
            f"{directory} has the steps {', '.join(map(str, found))}",
            f"{only}write {directory}@latest or {directory}@{found[-1]}",
        )
    return directory, int(which)


def _best(directory: epath.Path, found: list[int], reference: str) -> int:
    path = directory / "eval" / metrics.RESULTS
    best = results.best_step(metrics.read_jsonl(path), found)
    if best is None:
        raise UserError(
            f"{reference} cannot be told",
            f"{path} has no evaluation of the steps {', '.join(map(str, found))}",
            f"evaluate them first: t5x_lite eval --checkpoint={directory}@all",
        )
    return best
