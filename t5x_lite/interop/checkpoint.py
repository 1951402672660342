"""A model on its way from one format to another."""

import dataclasses
from collections.abc import Mapping

from t5x_lite.errors import UserError
from t5x_lite.interop import lazy, names
from t5x_lite.interop.lazy import Lazy
from t5x_lite.interop.names import Path
from t5x_lite.model.architecture import Architecture

FLOATS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters by the paths of `network`, and what stands beside them.

    Args:
      arch: their architecture.
      params: each parameter in float32, not yet read.
      step: of training.
      slots: Adafactor's `v`, `v_row` and `v_col` of each parameter, in the layout of train/optimizer.py; None: not
        carried along.
    """

    arch: Architecture
    params: Mapping[Path, Lazy]
    step: int = 0
    slots: Mapping[Path, Mapping[str, Lazy]] | None = None


def widened(array: Lazy, name: str, where) -> Lazy:
    """The array in float32, which is exact.

    Raises:
      UserError: it is of no type of floating point.
    """
    if array.dtype.name not in FLOATS:
        raise UserError(
            f"{name} in {where} is stored as {array.dtype.name}",
            f"parameters are read from {', '.join(FLOATS)}; quantised ones have lost what training needs",
            "give the original model with --input",
        )
    return lazy.cast(array, "float32")


def unscaled_head(model: Model) -> Model:
    """The model as others compute it: the factor of a scaled head becomes a part of its kernel.

    Gradients are larger by as much as the kernel is smaller, and Adafactor's statistics are of their squares.
    """
    if not model.arch.scaled_head:
        return model
    params = {**model.params, names.HEAD: lazy.scaled(model.params[names.HEAD], model.arch.embed_dim**-0.5)}
    slots = model.slots
    if slots is not None:
        slots = {**slots, names.HEAD: {k: lazy.scaled(v, model.arch.embed_dim) for k, v in slots[names.HEAD].items()}}
    return Model(dataclasses.replace(model.arch, scaled_head=False), params, model.step, slots)


def two_stacks(model: Model, theirs: str) -> Model:
    """The model as others compute it: layers that serve both stacks become copies.

    Args:
      model: any.
      theirs: who cannot express it, for the error.

    Raises:
      UserError: the model has adapters.
    """
    if model.arch.adapter_dim:
        raise UserError(
            f"Architecture.adapter_dim is {model.arch.adapter_dim}",
            f"{theirs} has no adapters in its T5, and no layer there computes the same",
            "keep this model in the native format",
        )
    if model.arch.structure != "shared":
        return model
    arch = dataclasses.replace(model.arch, structure="encoder_decoder")
    return Model(arch, names.unshared(model.params), model.step, model.slots and names.unshared(model.slots))
