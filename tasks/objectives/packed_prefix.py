"""Prefix LM in rows that are full and need no packing, as in `t5.data.preprocessors`
(google-research/text-to-text-transfer-transformer): the model's features themselves, by seqio's names.

All rows have one even length for every feature. An encoder-decoder gets two segments a row, the first cut where its
prefix ends and the second so that both fill inputs and targets; a decoder gets one, whose prefix it sees whole.
"""

from collections.abc import Callable, Mapping

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import lengths
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.ragged import Ragged, closed
from t5x_lite.tasks.objectives.segments import chopped, chunks, run_together

_PAD = 0

Arrays = dict[str, np.ndarray]

ENCODER_DECODER = (
    "encoder_input_tokens",
    "decoder_target_tokens",
    "decoder_input_tokens",
    "encoder_segment_ids",
    "encoder_positions",
    "decoder_segment_ids",
    "decoder_positions",
    "decoder_loss_weights",
)
DECODER = ("decoder_target_tokens", "decoder_input_tokens", "decoder_loss_weights", "decoder_causal_attention")


def packed_length(row_lengths: Mapping[str, int] | None) -> int:
    """The one length of all rows.

    Raises:
      UserError: the lengths are not given, differ, or are odd.
    """
    inputs, targets = lengths.given(row_lengths, "packed prefix LM")
    if len({*row_lengths.values()}) > 1 or targets % 2 or targets < 2:
        even = max(inputs, targets) + max(inputs, targets) % 2
        raise UserError(
            f"TASK_FEATURE_LENGTHS is {dict(row_lengths)}",
            "packed prefix LM cuts two segments of one even length into each other's rows",
            f"Set --gin.TASK_FEATURE_LENGTHS=\"{{'inputs': {even}, 'targets': {even}}}\"",
        )
    return targets


def targets_for_prefix_lm_objective(row_lengths: Mapping[str, int], ids: Ids) -> Callable:
    """Documents, an end of sequence behind each, run together and cut to full rows of targets; inputs there are none.

    Raises:
      UserError: see `packed_length`.
    """
    length = packed_length(row_lengths)

    def make(documents: Ragged, rng: np.random.Generator) -> dict[str, Ragged]:
        documents = chunks(documents, rng)
        # t5 takes an empty document for none; one that is there has an end.
        documents = Ragged(documents.values, documents.lengths[documents.lengths > 0])
        return {"targets": chopped(run_together(closed(documents, ids.eos)), length)}

    return make


def pack_prefix_lm_encoder_decoder(segments: np.ndarray, rng: np.random.Generator) -> Arrays:
    """Two segments a row: the prefix of one and what the other needs to fill the row, the rest of both for targets.

    The place of the cut is drawn uniformly from 1 to length - 1.

    Args:
      segments: [2 * rows, length] int32, padded with 0. The first two make a row, the next two another; a last one
        alone is left out.

    Returns:
      Features [rows, length] int32.
    """
    length = segments.shape[1]
    first, second = segments[:-1:2], segments[1::2]
    cut = rng.integers(1, length, size=(len(first), 1))
    place = np.arange(length)
    encoder_segments, encoder_positions = _two(place, cut)
    decoder_segments, decoder_positions = _two(place, length - cut)

    def taken(starts: tuple, positions: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        """The tokens of both segments from where each starts."""
        places = ((start + positions) % length for start in starts)
        one, two = (np.take_along_axis(s, where, axis=1) for s, where in zip((first, second), places))
        return np.where(segment_ids == 1, one, two)

    targets = taken((cut, length - cut), decoder_positions, decoder_segments)
    return {
        "encoder_input_tokens": taken((0, 0), encoder_positions, encoder_segments),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.where(decoder_positions > 0, _shifted(targets), 0),
        "encoder_segment_ids": encoder_segments,
        "encoder_positions": encoder_positions,
        "decoder_segment_ids": decoder_segments,
        "decoder_positions": decoder_positions,
        "decoder_loss_weights": (targets != _PAD).astype(np.int32),
    }


def pack_prefix_lm_decoder_only(
    segments: np.ndarray, rng: np.random.Generator, loss_on_targets_only: bool = True
) -> Arrays:
    """A segment a row, whose beginning is the prefix that attention sees whole.

    The prefix has 1 to length - 1 tokens, all numbers equally likely. `decoder_causal_attention` is 1 for the prefix
    and one place more, as the input there is the last token of the prefix.

    Args:
      segments: [rows, length] int32, padded with 0.
      loss_on_targets_only: whether the prefix is left out of the loss.

    Returns:
      Features [rows, length] int32.
    """
    rows, length = segments.shape
    cut = rng.integers(1, length, size=(rows, 1))
    place = np.arange(length)
    weighted = segments != _PAD
    if loss_on_targets_only:
        weighted &= place >= cut
    return {
        "decoder_target_tokens": segments,
        "decoder_input_tokens": _shifted(segments),
        "decoder_loss_weights": weighted.astype(np.int32),
        "decoder_causal_attention": (place <= cut).astype(np.int32),
    }


def _two(place: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(segment ids, positions) of rows with two segments, the first one of a size. [length], [rows, 1]"""
    behind = place >= size
    return behind + np.int32(1), (place - np.where(behind, size, 0)).astype(np.int32)


def _shifted(tokens: np.ndarray) -> np.ndarray:
    """Tokens one place further, 0 in front. [rows, length]"""
    return np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
