"""The network of t5x's checkpoints: which one it is, and its parameters and statistics in our layout and back.

Not scanned, each layer has arrays of its own and one position bias serves a stack: t5x's `examples/t5` and
`examples/decoder_only`. Scanned, the layers are axis 1 of one array, kernels keep heads apart from their width, and
every layer has a position bias: `examples/scalable_t5`.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop import checkpoint, lazy, names, t5x
from t5x_lite.interop.checkpoint import Model
from t5x_lite.interop.lazy import Lazy
from t5x_lite.interop.names import BIAS, HEAD, TABLE, Path
from t5x_lite.model.architecture import Architecture

SLOTS = ("v", "v_row", "v_col")
_SLOTLESS = "carry the parameters alone: leave out --optimizer_state"


def _current(path: Path) -> Path:
    """Today's names for those of the first scanned networks."""
    if len(path) > 1 and path[:2] in (("encoder", "layers"), ("decoder", "layers")):
        path = (path[0], path[0], *path[2:])
    return tuple("relpos_bias" if key == "relative_posemb" else key for key in path)


def _is_scanned(target: Iterable[Path]) -> bool:
    return any(path[:1] == path[1:2] for path in target)


def architecture(stored: t5x.Stored) -> Architecture:
    """The architecture that names and shapes tell; a gated layer is taken for GELU's, another for ReLU's.

    A decoder alone is taken for a language model.

    Raises:
      UserError: a parameter is missing that tells a size.
    """
    target = {_current(path): array for path, array in stored.target.items()}
    scanned = _is_scanned(target)
    decoder_only = not any(path[0] == "encoder" for path in target)

    def shape(*path: str) -> tuple[int, ...]:
        if path not in target:
            raise _missing(stored, path, "it tells the sizes of the model")
        return target[path].shape

    def in_layer(stack: str, *path: str) -> Path:
        return (stack, stack if scanned else "layers_0", *path)

    def layers(stack: str) -> int:
        if scanned:
            return shape(*in_layer(stack, "pre_mlp_layer_norm", "scale"))[1]
        return 1 + max((t5x.layer_number(path[1]) or 0 for path in target if path[0] == stack), default=0)

    vocab_size, embed_dim = shape(*(("decoder", *TABLE) if decoder_only else TABLE))
    own_bias = in_layer("decoder", *BIAS) in target
    bias = shape(*in_layer("decoder", *BIAS)) if own_bias else shape("decoder", *BIAS)
    gated = in_layer("decoder", "mlp", "wi_0", "kernel") in target
    query = shape(*in_layer("decoder", "self_attention", "query", "kernel"))
    joined = query[1] if len(query) == 2 else query[-2] * query[-1]
    return Architecture(
        structure="language_model" if decoder_only else "encoder_decoder",
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        num_heads=bias[0],
        head_dim=joined // bias[0],
        mlp_dim=shape(*in_layer("decoder", "mlp", "wo", "kernel"))[0],
        encoder_layers=0 if decoder_only else layers("encoder"),
        decoder_layers=layers("decoder"),
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        tied_head=HEAD not in target,
        relative_buckets=bias[-1],
        relative_bias_per_layer=own_bias,
    )


def read(stored: t5x.Stored, arch: Architecture, shapes: Mapping[Path, tuple[int, ...]], slots: bool) -> Model:
    """The model of a checkpoint. Types of 16 bits are widened, which is exact.

    Args:
      stored: from `t5x.read`.
      arch: from `architecture(stored)`, or as the user says.
      shapes: those of the parameters of `arch`.
      slots: whether to take Adafactor's statistics along.

    Raises:
      UserError: a parameter is missing, unknown or of another shape than `arch` says; the statistics are not those
        that our optimizer keeps.
    """
    target = {_current(path): array for path, array in stored.target.items()}
    scanned = _is_scanned(target)
    params, used = {}, set()
    for path, shape in shapes.items():
        sources = _sources(path, shape, arch, scanned)
        used.update(sources)
        for source in sources:
            if source not in target:
                raise _missing(stored, source, "the architecture has it")
        stacked = "layers" in path and not scanned
        parts = [_ours(path, target[source], scanned) for source in sources]
        for source, part in zip(sources, parts):
            if part is None or part.shape != (shape[1:] if stacked else shape):
                raise _other_shape(stored, source, target[source].shape, part, shape[1:] if stacked else shape)
        array = lazy.stacked(parts) if stacked else parts[0]
        params[path] = checkpoint.widened(array, _name(sources[0]), stored.place)
    unknown = sorted(set(target) - used)
    if unknown:
        raise UserError(
            f"{stored.place} stores {_name(unknown[0])}",
            f"{len(unknown)} of its parameters have no place in the architecture, which has "
            f"{arch.encoder_layers} and {arch.decoder_layers} layers",
            "give the gin file of its model with --gin_file, or an original T5 with --input",
        )
    return Model(arch, params, stored.step, _slots(stored, arch, shapes, scanned) if slots else None)


def _sources(path: Path, shape: tuple[int, ...], arch: Architecture, scanned: bool) -> list[Path]:
    if scanned:
        return [names.t5x_scanned(path, arch.decoder_only)]
    return names.t5x(path, shape[0], arch.decoder_only)


def _ours(path: Path, array: Lazy, scanned: bool) -> Lazy | None:
    """An array in our layout, of all layers where they are scanned and else of one; None: it has too few axes."""
    heads_apart = names.is_attention(path) and (scanned or len(array.shape) == 3)
    if heads_apart and len(array.shape) != 3 + scanned:
        return None
    if scanned:
        return names.from_scanned(path, array)
    return lazy.joined(array, 0 if path[-2] == "out" else 1) if heads_apart else array


def _name(path: Path) -> str:
    return "/".join(("target", *path))


def _missing(stored: t5x.Stored, path: Path, why: str) -> UserError:
    return UserError(
        f"{stored.place} stores no {_name(path)}", why, "give a whole T5 of t5x with --input, or its --gin_file"
    )


def _other_shape(
    stored: t5x.Stored, path: Path, found: tuple[int, ...], ours: Lazy | None, expected: tuple[int, ...]
) -> UserError:
    turned = f", which is {list(ours.shape)} here" if ours is not None and ours.shape != found else ""
    return UserError(
        f"{_name(path)} in {stored.place} has shape {list(found)}{turned}",
        f"by the architecture it should be {list(expected)}",
        "give the gin file of this model with --gin_file, or leave it out",
    )


def _slots(
    stored: t5x.Stored, arch: Architecture, shapes: Mapping[Path, tuple[int, ...]], scanned: bool
) -> dict[Path, dict[str, Lazy]]:
    """Adafactor's statistics, those of stacked layers in one array."""
    if not stored.slots:
        raise UserError(
            f"{stored.place} holds no optimizer state", "it has no state/param_states as Adafactor writes it", _SLOTLESS
        )
    if scanned or any(names.is_attention(path) and len(array.shape) > 2 for path, array in stored.target.items()):
        raise UserError(
            f"the optimizer state of {stored.place} is that of scanned layers",
            "there Adafactor factors the kernels of all layers by other axes and sizes than it does here and in "
            "unscanned models, so that its statistics mean something else",
            _SLOTLESS,
        )
    return {
        path: _slots_of(stored, _sources(path, shape, arch, scanned=False), "layers" in path)
        for path, shape in shapes.items()
    }


def _slots_of(stored: t5x.Stored, sources: list[Path], stacked: bool) -> dict[str, Lazy]:
    for source in sources:
        held = stored.slots.get(source, {})
        name = "/".join(("state", "param_states", *source))
        if not set(SLOTS) <= set(held):
            raise UserError(
                f"{stored.place} stores no {name} with {', '.join(SLOTS)}",
                "another optimizer than Adafactor has trained it",
                _SLOTLESS,
            )
        if "m" in held and held["m"].shape != (1,):
            raise UserError(
                f"{name}/m in {stored.place} has shape {list(held['m'].shape)}",
                "it was trained with momentum, which our Adafactor does not keep",
                _SLOTLESS,
            )
    arrays = {slot: [lazy.cast(stored.slots[source][slot], "float32") for source in sources] for slot in SLOTS}
    return {slot: lazy.stacked(group) if stacked else group[0] for slot, group in arrays.items()}


# ------------------------------------------------------------------------------------ writing


def write(folder, model: Model, dtype: str, scanned: bool) -> None:
    """Writes a model as `checkpoint_<step>` in a folder, in the layout that every version of t5x reads.

    Raises:
      UserError: t5x cannot express the model.
      OSError: it cannot be written.
    """
    model = checkpoint.unscaled_head(checkpoint.two_stacks(model, "t5x"))
    _check(model, scanned)
    target, slots = {}, {}
    for path, array in model.params.items():
        array = lazy.cast(array, dtype)
        if scanned:
            target[names.t5x_scanned(path, model.arch.decoder_only)] = names.to_scanned(path, array, model.arch)
            continue
        stacked = "layers" in path
        for i, name in enumerate(names.t5x(path, array.shape[0], model.arch.decoder_only)):
            target[name] = lazy.layer(array, i) if stacked else array
            if model.slots is not None:
                held = model.slots[path]
                slots[name] = {slot: lazy.layer(held[slot], i) if stacked else held[slot] for slot in SLOTS}
                slots[name]["m"] = _NO_MOMENTUM
    t5x.write(folder, target, slots, model.step)


_NO_MOMENTUM = lazy.of_array(np.zeros(1, np.float32))


def _check(model: Model, scanned: bool) -> None:
    arch = model.arch
    if arch.structure == "prefix_lm":
        raise UserError(
            "Architecture.structure is prefix_lm",
            "t5x gives its prefix LM the position bias of a language model, in which all that is behind a position is "
            "as far from it",
            "keep this model in the native format",
        )
    if arch.relative_bias_per_layer and not scanned:
        raise UserError(
            "Architecture.relative_bias_per_layer is True",
            "of t5x's networks only the scanned one has a position bias in every layer",
            "give --scan_layers",
        )
    if arch.decoder_only and scanned:
        raise UserError(
            f"--scan_layers is given and Architecture.structure is {arch.structure}",
            "the scanned decoder of t5x is another network, whose layers compute both sublayers side by side",
            "leave out --scan_layers",
        )
    if scanned and model.slots is not None:
        raise UserError(
            "--optimizer_state is given with --scan_layers",
            "for scanned layers t5x factors Adafactor's statistics by other axes than here",
            "leave out one of the two",
        )
