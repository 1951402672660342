"""t5x_lite convert: a checkpoint in another format: a model directory, Hugging Face's or t5x's.

Each format is read as parameters that are not in memory yet, and written by asking for them part by part.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from t5x_lite import config, model_dir
from t5x_lite import output as outputs
from t5x_lite.errors import RunError, UserError
from t5x_lite.interop import checkpoint as passing
from t5x_lite.interop import huggingface, lazy, orbax, t5x, t5x_model, tokenizer
from t5x_lite.interruption import preemptible, undisturbed
from t5x_lite.job import NOT_TRAINING, Job
from t5x_lite.model import network
from t5x_lite.model.architecture import Architecture
from t5x_lite.parallel import partition
from t5x_lite.program import lay_out
from t5x_lite.train import checkpoint

# Seconds that a write which was not waited for may take.
_WRITING = 10.0


@dataclasses.dataclass(frozen=True)
class Source:
    """What was found in --input.

    Args:
      model: its parameters, not yet read.
      job: a job that trains it on.
      config: the same as text.
      vocabulary: SentencePiece model file, "bytes", or None where nothing says.
    """

    model: passing.Model
    job: Job
    config: str
    vocabulary: str | None


def main(args) -> None:
    """The verb: writes --output whole or not at all."""
    target = args.target or ("hf" if args.source == "native" else "native")
    _check_flags(args, target)
    _check_output(args.output)
    readers = {"hf": _from_huggingface, "t5x": _from_t5x, "native": _from_native}
    writers = {"hf": _to_huggingface, "t5x": _to_t5x, "native": _to_native}
    with preemptible(lambda: _state(args.output)) as check:
        source = readers[args.source](args)
        with _whole_or_nothing(args.output) as directory:
            writers[target](args, source, directory)
            check()
    size = sum(array.size for array in source.model.params.values())
    print(f"{size:,} parameters of step {source.model.step} written to {args.output}{_remark(source, target)}")


def _check_flags(args, target: str) -> None:
    if args.source == target:
        raise UserError(f"--from={args.source} --to={target} changes nothing", "both are one format", "Change --to")
    pair = {args.source, target}
    for flag, given, formats in (
        ("--optimizer_state", args.optimizer_state, {"t5x", "native"}),
        ("--dtype", args.dtype != "float32", {"hf", "t5x"}),
        ("--scan_layers", args.scan_layers, {"t5x"}),
        ("--max_shard_size", args.max_shard_size is not None, {"hf"}),
    ):
        wrong = pair != formats if flag == "--optimizer_state" else target not in formats
        if given and wrong:
            where = (
                "from t5x to native and back" if flag == "--optimizer_state" else f"--to={' or '.join(sorted(formats))}"
            )
            raise UserError(
                f"{flag} is given with --from={args.source} --to={target}", f"it is for {where}", "leave it out"
            )


def _remark(source: Source, target: str) -> str:
    """What the reader of the result has to know besides."""
    if target == "t5x":
        vocabulary = "; t5x takes the vocabulary from its own configuration"
    elif source.vocabulary is None:
        vocabulary = ", without a vocabulary: give --gin.VOCABULARY where text is read, or convert again with it"
    else:
        vocabulary = " with its vocabulary"
    return vocabulary + _remark_on_head(source.model.arch, target)


def _remark_on_head(arch: Architecture, target: str) -> str:
    if arch.scaled_head and target == "t5x":
        return "; its head has taken in the factor d_model ** -0.5 that scaled_head stands for"
    if arch.scaled_head and target == "hf":
        return "; transformers 5 computes it as it is, transformers 4 without the factor d_model ** -0.5 of its logits"
    if target == "hf" and arch.relative_bias_per_layer and not arch.tied_head:
        return (
            "; transformers 4 computes it as it is, transformers 5 multiplies the logits of every umT5 by d_model ** "
            "-0.5 unless model.config.tie_word_embeddings is set to False after loading"
        )
    return ""


# ------------------------------------------------------------------------------------ reading


def _from_huggingface(args) -> Source:
    # Safetensors are read in place.
    outputs.check_local(args.input, "--input")
    vocabulary = huggingface.vocabulary(args.input)
    job, text = _described(huggingface.architecture(args.input), args, "bytes" if vocabulary == "bytes" else None)
    model = huggingface.read(args.input, job.model, _shapes(job.model))
    return Source(model, job, text, _file(job.vocabulary) or vocabulary)


def _from_t5x(args) -> Source:
    stored = t5x.read(t5x.find(args.input))
    job, text = _described(t5x_model.architecture(stored), args)
    model = t5x_model.read(stored, job.model, _shapes(job.model), args.optimizer_state)
    return Source(model, job, text, _file(job.vocabulary))


def _from_native(args) -> Source:
    directory, step, job = model_dir.open_job(args.input, args.gin_file, args.gin)
    state = directory / checkpoint.FOLDER / str(step) / "state"
    arrays = orbax.read(state)
    params = {}
    for path, shape in _shapes(job.model).items():
        found = arrays.get(("params", *path))
        if found is None or found.shape != shape:
            held = "is absent" if found is None else f"has shape {list(found.shape)}"
            raise UserError(
                f"{'/'.join(path)} {held} in the checkpoint {state.parent}, but its model needs {list(shape)}",
                f"{model_dir.CONFIG} beside it, or --gin_file, describes another model",
                "leave out what you override, or give another checkpoint with --input",
            )
        params[path] = passing.widened(found, "/".join(path), state.parent)
    if unknown := sorted(keys[1:] for keys in arrays if keys[0] == "params" and keys[1:] not in params):
        raise UserError(
            f"{'/'.join(unknown[0])} in the checkpoint {state.parent} has no place in its model",
            f"{len(unknown)} of the parameters there would be lost, and without them it is another model",
            "leave out what you override, or give another checkpoint with --input",
        )
    slots = _native_slots(state, arrays, job) if args.optimizer_state else None
    return Source(passing.Model(job.model, params, step, slots), job, "", _file(job.vocabulary))


def _file(vocabulary: str | None) -> str | None:
    """The file of a vocabulary that has one; "bytes" and None as they are.

    Raises:
      UserError: it is not there.
    """
    from t5x_lite.tasks import codec

    path = codec.model_file(vocabulary) or vocabulary
    if path not in (None, "bytes") and not epath.Path(path).is_file():
        raise UserError(f"VOCABULARY={path} is no file", "nothing is there", "correct the path after --gin.VOCABULARY")
    return path


def _shapes(arch: Architecture) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten_dict(network.split(arch, partition.Rules())[1]).items()}


def _described(arch: Architecture, args, vocabulary: str | None = None) -> tuple[Job, str]:
    """A job of an architecture, everything but the data, the steps and the place, with the user's overrides."""
    lines = ["from __gin__ import dynamic_registration", "from t5x_lite.model import architecture"]
    lines += ["MODEL = @architecture.Architecture()"]
    lines += [f"architecture.Architecture.{name} = {value!r}" for name, value in dataclasses.asdict(arch).items()]
    bindings = [f"VOCABULARY={vocabulary}"] * (vocabulary is not None) + args.gin
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.gin"
        path.write_text("\n".join(lines) + "\n")
        files = [str(path), "runs/pretrain.gin", *args.gin_file]
        job = config.build(config.load(files, bindings, optional=NOT_TRAINING))
    text = config.resolved()
    for name in NOT_TRAINING:
        text = text.replace(f"\n{name} = None\n", f"\n{name} = %gin.REQUIRED\n")
    return job, text


# ------------------------------------------------------------------------------------ writing


def _to_native(args, source: Source, directory: Path) -> None:
    step = source.model.step
    state = {
        "step": orbax.scalar(step),
        "params": unflatten_dict(dict(source.model.params)),
    }
    if source.model.slots is not None:
        state["opt_state"] = _optimizer_state(source)
    orbax.write(directory / checkpoint.FOLDER / str(step), "state", state)
    if source.vocabulary not in (None, "bytes"):
        (directory / model_dir.VOCABULARY).write_bytes(epath.Path(source.vocabulary).read_bytes())
    (directory / model_dir.CONFIG).write_text(source.config, encoding="utf-8")


def _to_huggingface(args, source: Source, directory: Path) -> None:
    if source.vocabulary is not None:
        tokenizer.write(directory, source.vocabulary)
    largest = 5 * 10**9 if args.max_shard_size is None else args.max_shard_size
    huggingface.write(directory, source.model, args.dtype, largest)


def _to_t5x(args, source: Source, directory: Path) -> None:
    t5x_model.write(epath.Path(directory), source.model, args.dtype, args.scan_layers)


def _check_output(output: str) -> None:
    # Whole or not at all takes a folder that can be renamed.
    outputs.check_local(output, "--output")
    if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise UserError(
            f"--output={output} exists", "a conversion does not write over anything", "Choose a new --output"
        )
    outputs.check_folder(output, "--output")


@contextlib.contextmanager
def _whole_or_nothing(output: str) -> Iterator[Path]:
    """A folder beside `output` that takes its name when everything in it is written."""
    path = Path(output)
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield scratch
        scratch.chmod(0o755)
        scratch.replace(path)
    except OSError as error:
        raise RunError(
            f"{output} could not be written: {error.strerror or error}",
            "nothing is left of it, and --input is unchanged",
            "make room there or choose another --output, and run the same command again",
        ) from error
    finally:
        if scratch is not None:
            with undisturbed():
                _remove(scratch)


def _remove(folder: Path) -> None:
    """Takes a folder away. Threads of TensorStore that are in the middle of a write may put files there again."""
    end = time.monotonic() + _WRITING
    while folder.exists() and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _state(output: str) -> str:
    """What a conversion that is cut off leaves."""
    if os.path.isdir(output) and os.listdir(output):
        return f"{output} is written whole"
    return f"nothing is left of {output}, and --input is unchanged; the same command begins anew"


# ---------------------------------------------------------------------------- optimizer state


def _abstract_optimizer_state(job: Job):
    """The shapes of the optimizer's state, as `train` keeps it."""
    with jax.set_mesh(partition.single_device()):
        return lay_out(job, jax.sharding.get_mesh()).state["opt_state"]


def _slot(keys: Sequence[str]) -> tuple[tuple[str, ...], str] | None:
    """The parameter and the statistic of Adafactor that a leaf of the state is; None: the count of steps.

    Raises:
      UserError: it is of another optimizer.
    """
    if keys[-1] == "count":
        return None
    if keys[-2] not in t5x_model.SLOTS:
        raise UserError(
            f"OPTIMIZER keeps {keys[-2]}",
            "the optimizer state of t5x is that of Adafactor",
            "give --gin_file=optim/adafactor.gin, or leave out --optimizer_state",
        )
    return tuple(keys[-1].split(".")), keys[-2]


def _optimizer_state(source: Source):
    """Adafactor's state as `train` keeps it, from the statistics of each parameter."""
    abstract = _abstract_optimizer_state(source.job)
    leaves = []
    for keys, shape in orbax.names(abstract).items():
        slot = _slot(keys)
        if slot is None:
            count = np.full(shape.shape, source.model.step, shape.dtype)
            leaves.append(lazy.of_array(count))
            continue
        path, name = slot
        array = source.model.slots[path][name]
        if array.shape != shape.shape:
            raise UserError(
                f"{name} of {'/'.join(path)} has shape {list(array.shape)} in --input",
                f"Adafactor as configured here keeps {list(shape.shape)}: it factors other sizes",
                "set --gin.optimizer.adafactor.min_dim_size_to_factor as it was, or leave out --optimizer_state",
            )
        leaves.append(array)
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _native_slots(state: epath.Path, arrays: Mapping[tuple[str, ...], lazy.Lazy], job: Job):
    """The statistics of each parameter, from the state that `train` keeps."""
    slots: dict[tuple[str, ...], dict[str, lazy.Lazy]] = {}
    for keys in orbax.names(_abstract_optimizer_state(job)):
        slot, stored = _slot(keys), arrays.get(("opt_state", *keys))
        if stored is None:
            raise UserError(
                f"the checkpoint {state.parent} holds no opt_state/{'/'.join(keys)}",
                "it was converted, or trained with another optimizer",
                "leave out --optimizer_state",
            )
        if slot is not None:
            slots.setdefault(slot[0], {})[slot[1]] = stored
    missing = [path for path in _shapes(job.model) if path not in slots]
    if missing:
        raise UserError(
            f"the checkpoint {state.parent} holds no optimizer state of {'/'.join(missing[0])}",
            "it was not trained: TRAINABLE left it out",
            "leave out --optimizer_state",
        )
    return slots
