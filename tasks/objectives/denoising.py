"""The objectives of the T5 paper (tables 3 to 7) and of UL2.

Each is called with the row lengths of inputs and targets (the end of sequence included) and the ids of the vocabulary,
and checks them. What it returns takes documents and a random generator, and gives {"inputs", "targets"}, both Ragged,
each row closed by an end of sequence and no longer than its length.

The sequences of steps are those of the gin files and of `t5.data.preprocessors` in
google-research/text-to-text-transfer-transformer. UL2 is Tay et al. 2022, table 1 and section 3.1.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import corruption, lengths, masks
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.ragged import Ragged, closed, concatenated, filled, opened, ragged, split, trimmed
from t5x_lite.tasks.objectives.segments import chopped, chopped_at_random, chunks, run_together

Examples = dict[str, Ragged]
Make = Callable[[Ragged, np.random.Generator], Examples]
Lengths = Mapping[str, int]

# Segments denoised at once: long documents make very many.
_ROWS_AT_ONCE = 512


def denoise(
    row_lengths: Lengths,
    ids: Ids,
    *,
    noise_density: float,
    noise_mask: Callable[..., np.ndarray],
    inputs_of: Callable[..., Ragged],
    targets_of: Callable[..., Ragged] = corruption.all_tokens,
    together: bool = True,
    shortest: int | None = None,
) -> Make:
    """Any mask, and anything made of it: for objectives of one's own.

    Segments have as many tokens as the inputs, less the end of sequence. What becomes of them is cut where it is longer
    than its row, for what a function makes of a mask is not known beforehand.

    Args:
      row_lengths, ids: see `span_corruption`.
      noise_density: fraction of the tokens that is noise.
      noise_mask: a function of masks.py, called with the lengths of segments, noise_density and rng.
      inputs_of: a function of corruption.py, which makes the inputs of segments and masks.
      targets_of: likewise the targets.
      together: whether documents are run together before they are cut, so that rows are full.
      shortest: segments are of random lengths from this on, drawn for each text that is cut; None: all full.

    Raises:
      UserError: the lengths are too short.
    """
    inputs, targets = lengths.given(row_lengths, "denoising")
    lengths.require_inputs(inputs, 3 if shortest is None else shortest + 1, "denoising")
    if targets_of is corruption.all_tokens:
        lengths.require_targets(inputs, targets, inputs, "denoising")
    return _denoising(
        inputs - 1, inputs, targets, ids, together=together, shortest=shortest,
        mask=lambda sizes, rng: noise_mask(sizes, noise_density=noise_density, rng=rng),
        inputs_of=inputs_of, targets_of=targets_of,
    )  # fmt: skip


def span_corruption(
    row_lengths: Lengths,
    ids: Ids,
    *,
    noise_density: float = 0.15,
    mean_span: float = 3.0,
    mode: str = "",
    fit_sentinels: bool = False,
) -> Make:
    """Random spans are cut out, each leaving a sentinel; the targets are the spans, each behind its sentinel.

    Args:
      row_lengths: tokens of the rows of inputs and targets.
      ids: of the vocabulary.
      noise_density: fraction of the tokens that is cut out.
      mean_span: mean length of a span, in tokens.
      mode: text in front of the inputs, which tells the denoiser (UL2).
      fit_sentinels: segments whose spans are more than the sentinels of the vocabulary are made shorter, not refused.

    Raises:
      UserError: the lengths are too short, or more sentinels are needed than the vocabulary has.
    """
    inputs, targets = lengths.given(row_lengths, "span corruption", "{'inputs': 512, 'targets': 114}")
    tokens, needed = lengths.span_corruption(inputs, noise_density, mean_span, opening=len(ids.encode(mode)))
    spans = lengths.counts(tokens, noise_density, mean_span)[1]
    while fit_sentinels and spans > ids.sentinels:
        tokens -= 1
        noise, spans = lengths.counts(tokens, noise_density, mean_span)
        needed = noise + spans + 1
    lengths.require_targets(inputs, targets, needed, "span corruption")
    if ids.sentinels < spans:
        raise UserError(
            f"TASK_FEATURE_LENGTHS gives the inputs {inputs} tokens",
            f"their {spans} spans need a sentinel each, and the vocabulary has {ids.sentinels}",
            "Shorten the inputs in --gin.TASK_FEATURE_LENGTHS, or use a task with a larger mean_span",
        )
    return _denoising(
        tokens, inputs, targets, ids, mode=mode,
        mask=lambda sizes, rng: masks.spans(sizes, noise_density, mean_span, rng),
        inputs_of=corruption.noise_span_to_unique_sentinel,
        targets_of=corruption.nonnoise_span_to_unique_sentinel,
    )  # fmt: skip


def iid_denoising(row_lengths: Lengths, ids: Ids, *, noise_density: float = 0.15) -> Make:
    """Replace corrupted spans, T5's baseline: tokens are cut out one by one, a run of them leaves one sentinel.

    The number of runs is random. Beyond the vocabulary's 100 sentinels, as half of 512 tokens cut out make them, the
    ids before those serve as such: as in t5, and as in the paper's runs.
    """
    inputs, targets = _iid_lengths(row_lengths, noise_density, "replacing corrupted spans")
    lengths.require_targets(
        inputs, targets, lengths.iid_targets(inputs - 1, noise_density), "replacing corrupted spans, on average,"
    )
    return _denoising(
        inputs - 1, inputs, targets, ids,
        mask=_iid(noise_density),
        inputs_of=corruption.noise_span_to_unique_sentinel,
        targets_of=corruption.nonnoise_span_to_unique_sentinel,
    )  # fmt: skip


def drop_tokens(row_lengths: Lengths, ids: Ids, *, noise_density: float = 0.15) -> Make:
    """Drop corrupted tokens: the inputs lack them without a trace, the targets are them alone."""
    inputs, targets = _iid_lengths(row_lengths, noise_density, "dropping tokens")
    needed = round((inputs - 1) * noise_density) + 1
    lengths.require_targets(inputs, targets, needed, "dropping tokens, on average,")
    return _denoising(
        inputs - 1, inputs, targets, ids,
        mask=_iid(noise_density),
        inputs_of=corruption.drop_noise_tokens,
        targets_of=corruption.drop_nonnoise_tokens,
    )  # fmt: skip


def bert_style(row_lengths: Lengths, ids: Ids, *, noise_density: float = 0.15) -> Make:
    """A corrupted token becomes a sentinel, or with probability 0.1 a random token; the targets are the whole text."""
    return _whole_text(
        row_lengths, ids, noise_density, "BERT-style denoising", corruption.noise_token_to_random_token_or_sentinel
    )


def mass_style(row_lengths: Lengths, ids: Ids, *, noise_density: float = 0.15) -> Make:
    """A corrupted token becomes a sentinel; the targets are the whole text."""
    return _whole_text(row_lengths, ids, noise_density, "MASS-style denoising", corruption.noise_token_to_sentinel)


def _whole_text(row_lengths: Lengths, ids: Ids, noise_density: float, objective: str, inputs_of) -> Make:
    inputs, targets = _iid_lengths(row_lengths, noise_density, objective)
    lengths.require_targets(inputs, targets, inputs, objective)
    return _denoising(
        inputs - 1, inputs, targets, ids,
        mask=_iid(noise_density), inputs_of=inputs_of, targets_of=corruption.all_tokens,
    )  # fmt: skip


def deshuffling(row_lengths: Lengths, ids: Ids) -> Make:
    """The tokens of a segment in random order; the targets are the text. Segments end with their document."""
    inputs, targets = lengths.given(row_lengths, "deshuffling")
    lengths.require_inputs(inputs, 3, "deshuffling")
    lengths.require_targets(inputs, targets, inputs, "deshuffling")
    return _denoising(
        inputs - 1, inputs, targets, ids, together=False,
        mask=lambda sizes, rng: masks.everything(sizes),
        inputs_of=corruption.permute_noise_tokens,
        targets_of=corruption.all_tokens,
    )  # fmt: skip


def prefix_lm(row_lengths: Lengths, ids: Ids, *, noise_density: float = 0.5, mode: str = "") -> Make:
    """The beginning of a segment is the inputs, the rest the targets. Segments end with their document.

    Args:
      row_lengths, ids, mode: see `span_corruption`.
      noise_density: mean fraction that the targets make up, at most 0.5, where every place of the cut is equally
        likely; see `masks.prefix`.
    """
    if not 0 < noise_density <= 0.5:
        raise UserError(
            f"Prefix LM with noise_density {noise_density}",
            "the targets make up at most half of the text on average",
            "Correct noise_density of the task",
        )
    inputs, targets = lengths.given(row_lengths, "prefix LM")
    opening = len(ids.encode(mode))
    lengths.require_inputs(inputs, 3 + opening, "prefix LM")
    tokens = inputs - opening - 1
    longest_rest = tokens - int(masks.least_prefix(np.array(tokens), noise_density))
    lengths.require_targets(inputs, targets, longest_rest + 1, "prefix LM")
    return _denoising(
        tokens, inputs, targets, ids, mode=mode, together=False,
        mask=lambda sizes, rng: masks.prefix(sizes, noise_density, rng),
        inputs_of=corruption.drop_nonnoise_tokens,
        targets_of=corruption.drop_noise_tokens,
    )  # fmt: skip


def causal_lm(row_lengths: Lengths, ids: Ids) -> Make:
    """Language modelling: documents are run together and cut to the targets; the inputs are one end of sequence."""
    targets = _lm_targets(row_lengths)

    def make(documents: Ragged, rng: np.random.Generator) -> Examples:
        segments = chopped(run_together(chunks(documents, rng)), targets - 1)
        return _with_empty_inputs(closed(segments, ids.eos), ids)

    return make


def full_lm(row_lengths: Lengths, ids: Ids) -> Make:
    """Language modelling with an end of sequence where a document ends, and only there."""
    targets = _lm_targets(row_lengths)

    def make(documents: Ragged, rng: np.random.Generator) -> Examples:
        documents = closed(chunks(documents, rng), ids.eos)
        return _with_empty_inputs(chopped(run_together(documents), targets), ids)

    return make


def _lm_targets(row_lengths: Lengths) -> int:
    inputs, targets = lengths.given(row_lengths, "language modelling", "{'inputs': 1, 'targets': 512}")
    lengths.require_inputs(inputs, 1, "language modelling")
    lengths.require_targets(inputs, targets, 2, "language modelling")
    return targets


def _with_empty_inputs(targets: Ragged, ids: Ids) -> Examples:
    rows = len(targets.lengths)
    return {"inputs": Ragged(np.full(rows, ids.eos, np.int32), np.ones(rows, np.int64)), "targets": targets}


def one_of(objectives: Sequence[Callable[..., Make]]) -> Callable[[Lengths, Ids], Make]:
    """A mixture of denoisers: each document goes to one of them, all equally likely.

    Args:
      objectives: functions of this module with their parameters.
    """

    def objective(row_lengths: Lengths, ids: Ids) -> Make:
        makes = [objective(row_lengths, ids) for objective in objectives]

        def make(documents: Ragged, rng: np.random.Generator) -> Examples:
            # Each document is dealt to a denoiser; what they make is dealt out in random order.
            dealt = rng.integers(len(makes), size=len(documents.lengths))
            rows = split(documents)
            made = [
                make(ragged([rows[k] for k in np.flatnonzero(dealt == number)]), rng)
                for number, make in enumerate(makes)
            ]
            both = {name: split(concatenated([m[name] for m in made])) for name in ("inputs", "targets")}
            order = rng.permutation(len(both["inputs"]))
            return {name: ragged([all_rows[k] for k in order]) for name, all_rows in both.items()}

        return make

    return objective


def _iid_lengths(row_lengths: Lengths, noise_density: float, objective: str) -> tuple[int, int]:
    lengths.check_density(noise_density, objective)
    inputs, targets = lengths.given(row_lengths, objective)
    lengths.require_inputs(inputs, 3, objective)
    return inputs, targets


def _iid(noise_density: float) -> Callable:
    return lambda sizes, rng: masks.iid(sizes, noise_density, rng)


def _denoising(
    tokens: int,
    inputs: int,
    targets: int,
    ids: Ids,
    *,
    mask: Callable,
    inputs_of: Callable,
    targets_of: Callable,
    together: bool = True,
    shortest: int | None = None,
    mode: str = "",
) -> Make:
    """Segments of `tokens` tokens, masked and turned into inputs and targets of at most the given lengths.

    With `shortest`, segments are of random lengths from that on.
    """
    opening = np.asarray(ids.encode(mode), np.int32)

    def make(documents: Ragged, rng: np.random.Generator) -> Examples:
        documents = chunks(documents, rng)
        documents = run_together(documents) if together else documents
        segments = (
            chopped(documents, tokens) if shortest is None else chopped_at_random(documents, rng, tokens, shortest)
        )
        parts = [_part(rows, rng) for rows in _blocks(segments)]
        made = {name: concatenated([part[name] for part in parts]) for name in ("inputs", "targets")}
        if len(opening):
            made["inputs"] = opened(made["inputs"], opening)
        return {
            "inputs": closed(trimmed(made["inputs"], inputs - 1), ids.eos),
            "targets": closed(trimmed(made["targets"], targets - 1), ids.eos),
        }

    def _part(segments: Ragged, rng: np.random.Generator) -> Examples:
        rows = filled(segments)
        noise = mask(segments.lengths, rng)
        return {"inputs": inputs_of(rows, noise, ids, rng), "targets": targets_of(rows, noise, ids, rng)}

    return make


def _blocks(segments: Ragged) -> list[Ragged]:
    """The segments, so many at a time; one block without any where there are none."""
    ends = np.concatenate([[0], np.cumsum(segments.lengths)])
    starts = range(0, max(len(segments.lengths), 1), _ROWS_AT_ONCE)
    blocks = []
    for start in starts:
        sizes = segments.lengths[start : start + _ROWS_AT_ONCE]
        blocks.append(Ragged(segments.values[ends[start] : ends[start + len(sizes)]], sizes))
    return blocks
