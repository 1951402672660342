"""Checkpoints: one Orbax composite a step, the training state beside the position of every data shard.

    MODEL_DIR/checkpoints/STEP/state   step, params, opt_state and skipped steps: a standard Orbax pytree
    MODEL_DIR/checkpoints/STEP/data    what the data pipeline needs to go on, a file for each data shard

Orbax writes a step under a temporary name and renames it when every host has
finished, so a directory that is called STEP is whole.
"""

import dataclasses
import json
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from t5x_lite.errors import UserError

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Position:
    """Where the data pipeline stands after a step.

    Args:
      identity: what the shards are a cut of; a position means something only under the same.
      shards: opaque bytes for each data shard that this host owns.
    """

    identity: Mapping[str, object]
    shards: Mapping[int, bytes]


class PositionHandler(ocp.CheckpointHandler):
    """Writes and reads `Position` as the item `data`; every host writes the shards that it owns."""

    def save(self, directory: epath.Path, args: "SavePosition") -> None:
        if jax.process_index() == 0:
            (directory / "identity.json").write_text(json.dumps(dict(args.position.identity), sort_keys=True))
        for shard, state in args.position.shards.items():
            (directory / f"shard_{shard:05d}").write_bytes(state)

    def restore(self, directory: epath.Path, args: "RestorePosition") -> Position:
        saved = json.loads((directory / "identity.json").read_text())
        wanted = json.loads(json.dumps(dict(args.identity)))
        for name in sorted(wanted.keys() | saved.keys()):
            if wanted.get(name) != saved.get(name):
                raise UserError(
                    f"{name} is {wanted.get(name)!r}, but the data position in {directory} was saved "
                    f"under {saved.get(name)!r}",
                    "the stream of examples would not be the one that the run has seen so far",
                    f"set --gin.{name} back, or start another MODEL_DIR from this one by --gin.INITIAL_CHECKPOINT_PATH",
                )
        return Position(saved, {s: (directory / f"shard_{s:05d}").read_bytes() for s in args.shards})


@ocp.args.register_with_handler(PositionHandler, for_save=True)
@dataclasses.dataclass
class SavePosition(ocp.args.CheckpointArgs):
    position: Position


@ocp.args.register_with_handler(PositionHandler, for_restore=True)
@dataclasses.dataclass
class RestorePosition(ocp.args.CheckpointArgs):
    identity: Mapping[str, object]
    shards: list[int]


def manager(model_dir: str, keep: int | None, read_only: bool = False) -> ocp.CheckpointManager:
    """The Orbax manager of a model directory. Saving is asynchronous; `wait_until_finished` surfaces its errors."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(keep) if keep else None,
        enable_async_checkpointing=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
    )
    return ocp.CheckpointManager(
        # Orbax wants an absolute path.
        epath.Path(model_dir).absolute() / FOLDER,
        options=options,
        item_handlers={"state": ocp.StandardCheckpointHandler(), "data": PositionHandler()},
    )


def save(checkpoints: ocp.CheckpointManager, step: int, state: dict, position: Position) -> None:
    """Starts to write a checkpoint. The state's arrays may be donated as soon as this returns."""
    checkpoints.save(
        step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=SavePosition(position)), force=True
    )


def restore(
    checkpoints: ocp.CheckpointManager,
    step: int,
    abstract_state: dict,
    identity: Mapping[str, object],
    shards: list[int],
) -> tuple[dict, Position]:
    """Reads a checkpoint onto the shardings of `abstract_state`, whatever mesh wrote it.

    Args:
      checkpoints: from `manager`.
      step: a committed step.
      abstract_state: ShapeDtypeStructs with shardings.
      identity: of the data, compared with the saved one.
      shards: the data shards that this host owns.

    Raises:
      UserError: parameters of another shape, another optimizer, or another cut of the data.
    """
    directory = epath.Path(checkpoints.directory)
    _check_shapes(checkpoints.item_metadata(step)["state"], abstract_state, directory / str(step))
    restored = checkpoints.restore(
        step,
        args=ocp.args.Composite(data=RestorePosition(identity, shards), state=ocp.args.StandardRestore(abstract_state)),
    )
    return restored["state"], restored["data"]


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
        _check_shapes({name: saved.get(name) for name in abstract}, abstract, directory)
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


def _check_shapes(saved, wanted, where: epath.Path) -> None:
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
            "use the same optim/*.gin" if optimizer else "use the gin file of its model, or another MODEL_DIR",
        )
    extra = sorted(n for n in saved if n.startswith("params") and n not in wanted)
    if extra and any(n.startswith("params") for n in wanted):
        raise UserError(
            f"the checkpoint {where} holds {extra[0]}, which this job's model does not have",
            "the checkpoint is of another model",
            "use the gin file of its model, or another MODEL_DIR",
        )


def save_params(model_dir: str, step: int, params: dict) -> None:
    """Writes a checkpoint of parameters alone, and returns when it is committed."""
    state = {"step": np.asarray(step, np.int32), "params": params}
    with manager(model_dir, keep=None) as checkpoints:
        checkpoints.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), force=True)


def entries(directory: epath.Path) -> set[str]:
    """What the state of a checkpoint holds: `params`, `step`, and `opt_state` unless it was converted."""
    with _reader() as reader:
        return set(reader.metadata(directory).item_metadata["state"].tree)


def steps(model_dir: str) -> list[int]:
    """The committed steps of a model directory, ascending."""
    folder = epath.Path(model_dir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "state").exists())


def find(reference: str, flag: str = "--checkpoint") -> tuple[epath.Path, int]:
    """The model directory and step that `DIR`, `DIR@latest`, `DIR@STEP` or `DIR/checkpoints/STEP` means.

    Raises:
      UserError: it is no model directory, or has no such step.
    """
    name, at, which = reference.rpartition("@")
    directory = epath.Path(name if at else reference).absolute()
    if not at and directory.parent.name == FOLDER and directory.name.isdigit():
        directory, which = directory.parent.parent, directory.name
    elif not at:
        which = "latest"
    if not directory.is_dir():
        raise UserError(f"{flag}={reference} is no directory", "nothing is there", f"Correct the path after {flag}")
    found = steps(directory)
    if not found:
        raise UserError(
            f"{flag}={reference} is no model directory",
            f"it has no {FOLDER}/STEP with a committed checkpoint",
            "give the MODEL_DIR of a training run, or make one with t5x_lite convert",
        )
    if which == "latest":
        return directory, found[-1]
    if not which.isdigit() or int(which) not in found:
        raise UserError(
            f"{flag}={reference} names no checkpoint",
            f"{directory} has the steps {', '.join(map(str, found))}",
            f"write {directory}@latest or {directory}@{found[-1]}",
        )
    return directory, int(which)
