"""t5x_lite convert: a model directory from a Hugging Face one, or the other way round."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from t5x_lite import config, model_dir
from t5x_lite import output as outputs
from t5x_lite.errors import RunError, UserError
from t5x_lite.interop import huggingface
from t5x_lite.job import NOT_TRAINING
from t5x_lite.model import network
from t5x_lite.model.architecture import Architecture
from t5x_lite.train import checkpoint


def main(args) -> None:
    """The verb: writes --output whole or not at all."""
    target = args.target or ("native" if args.source == "hf" else "hf")
    if args.source == target:
        raise UserError(f"--from={args.source} --to={target} changes nothing", "both are one format", "Change --to")
    _check_output(args.output)
    if target == "native":
        from_huggingface(args.input, args.output)
    else:
        to_huggingface(args.input, args.output)


def from_huggingface(source: str, output: str) -> None:
    """Makes a model directory from a Hugging Face T5 directory; its step is 0."""
    # Safetensors are mapped into memory.
    outputs.check_local(source, "--input")
    arch = huggingface.architecture(source)
    params = huggingface.parameters(source, arch)
    vocabulary = huggingface.vocabulary_file(source)
    with _whole_or_nothing(output) as directory:
        checkpoint.save_params(str(directory), 0, params)
        if vocabulary is not None:
            shutil.copyfile(vocabulary, directory / model_dir.VOCABULARY)
        (directory / model_dir.CONFIG).write_text(_config(arch), encoding="utf-8")
    tokens = "with its vocabulary" if vocabulary else "without a vocabulary: give --gin.VOCABULARY where text is read"
    print(f"{network.count(params):,} parameters written to {output}, {tokens}")


def to_huggingface(source: str, output: str) -> None:
    """Makes a Hugging Face directory from a model directory."""
    with model_dir.restored(source, (), ()) as model:
        params = jax.tree.map(np.asarray, jax.device_get(model.params))
    vocabulary = model.directory / model_dir.VOCABULARY
    with _whole_or_nothing(output) as directory:
        huggingface.write(directory, model.job.model, params, vocabulary if vocabulary.exists() else None)
    print(f"{network.count(params):,} parameters of step {model.step} written to {output}")


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
            shutil.rmtree(scratch, ignore_errors=True)


def _config(arch: Architecture) -> str:
    """A configuration for fine-tuning or pretraining on: everything but the data, the steps and the place."""
    lines = ["from __gin__ import dynamic_registration", "from t5x_lite.model import architecture"]
    lines += ["MODEL = @architecture.Architecture()"]
    lines += [f"architecture.Architecture.{name} = {value!r}" for name, value in dataclasses.asdict(arch).items()]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.gin"
        path.write_text("\n".join(lines) + "\n")
        config.load([str(path), "runs/pretrain.gin"], optional=NOT_TRAINING)
    text = config.resolved()
    for name in NOT_TRAINING:
        text = text.replace(f"\n{name} = None\n", f"\n{name} = %gin.REQUIRED\n")
    return text
