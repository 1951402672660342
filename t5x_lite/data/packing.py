"""Several short examples in one row, kept apart by segment ids.

Examples go, in order, into the first open row with room in every feature. A row
leaves when it is full, or when a new row is needed and too many are open: then
the fullest goes. Deterministic, and the open rows are part of a data position.
"""

import operator
from collections.abc import Callable, Mapping

import numpy as np

Example = dict[str, np.ndarray]
Arrays = dict[str, np.ndarray]

# More open rows fill better; examples wait longer to appear, and a position grows.
OPEN_ROWS = 16


class Packer:
    """Puts examples into rows.

    Args:
      lengths: tokens of each feature in a row.
      pack: False gives each example a row of its own.
    """

    def __init__(self, lengths: Mapping[str, int], pack: bool = True):
        self._lengths, self._pack = dict(lengths), pack
        # The open rows, and beside each how many tokens it has left, feature by feature.
        self._rows: list[list[Example]] = []
        self._room: list[list[int]] = []

    def add(self, example: Example) -> list[list[Example]]:
        """Takes an example (1-D int arrays no longer than `lengths`) and returns the rows that left, 0 or 1 or 2."""
        if not self._pack:
            return [[example]]
        done = []
        sizes = [len(example[f]) for f in self._lengths]
        # Most examples fit nowhere, so that this is what packing costs.
        index = next((i for i, room in enumerate(self._room) if all(map(operator.le, sizes, room))), None)
        if index is None:
            if len(self._rows) == OPEN_ROWS:
                done.append(self._leave(min(range(OPEN_ROWS), key=lambda i: sum(self._room[i]))))
            index = len(self._rows)
            self._rows.append([])
            self._room.append([*self._lengths.values()])
        self._rows[index].append(example)
        self._room[index] = [room - size for room, size in zip(self._room[index], sizes)]
        if not min(self._room[index]):
            done.append(self._leave(index))
        return done

    def _leave(self, index: int) -> list[Example]:
        del self._room[index]
        return self._rows.pop(index)

    def flush(self) -> list[list[Example]]:
        """All open rows, oldest first; none is open afterwards."""
        done, self._rows, self._room = self._rows, [], []
        return done

    def open_rows(self) -> list[list[Example]]:
        """The open rows, to be kept in a position."""
        return list(self._rows)

    def reopen(self, rows: list[list[Example]]) -> None:
        """Goes on from `open_rows`."""
        self._rows = [list(row) for row in rows]
        self._room = [[n - sum(len(e[f]) for e in row) for f, n in self._lengths.items()] for row in rows]


def fill(rows: list[list[Example]], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Rows as arrays.

    Returns:
      For each feature F of length L: `F` int32 [rows, L], padded with 0, and `F_segment_ids` int32
      [rows, L], which counts the examples of a row from 1 and is 0 on padding.
    """
    arrays = {}
    for feature, length in lengths.items():
        tokens = np.zeros((len(rows), length), np.int32)
        segments = np.zeros((len(rows), length), np.int32)
        for r, row in enumerate(rows):
            start = 0
            for number, example in enumerate(row, start=1):
                end = start + len(example[feature])
                tokens[r, start:end] = example[feature]
                segments[r, start:end] = number
                start = end
        arrays[feature], arrays[f"{feature}_segment_ids"] = tokens, segments
    return arrays


# (`fill`ed inputs and targets with their segment ids, whether rows are packed) -> the features that a model reads.
Convert = Callable[[Arrays, bool], Arrays]


def encoder_decoder(arrays: Arrays, packed: bool) -> Arrays:
    """The features of an encoder-decoder, by the names of seqio's EncDecFeatureConverter.

    Decoder inputs are the targets shifted right by one within each example, starting from 0.

    Args:
      arrays: `inputs` [rows, S], `targets` [rows, T] and their segment ids.
      packed: False leaves the segment ids out: attention then only hides padding.
    """
    targets, segments = arrays["targets"], arrays["targets_segment_ids"]
    features = {
        "encoder_input_tokens": arrays["inputs"],
        "decoder_input_tokens": _shifted(targets, segments),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (segments > 0).astype(np.float32),
    }
    if packed:
        features["encoder_segment_ids"] = arrays["inputs_segment_ids"]
        features["decoder_segment_ids"] = segments
    return features


def decoder_only(arrays: Arrays, packed: bool, prefix: bool, loss_on_inputs: bool = False) -> Arrays:
    """The features of a decoder alone, by the names of seqio's PrefixLMFeatureConverter.

    The inputs and targets of an example become one sequence, in rows as long as both features together.

    Args:
      arrays: `inputs` [rows, S], `targets` [rows, T] and their segment ids.
      packed: False leaves the segment ids out.
      prefix: with `decoder_causal_attention`, 1 where a position reads what comes before the first target: one more
        than there are inputs, for the first position reads the start of the sequence.
      loss_on_inputs: inputs are predicted too, and not targets alone.
    """
    lengths = [arrays[name].shape[1] for name in ("inputs", "targets")]
    tokens = np.concatenate([arrays["inputs"], arrays["targets"]], axis=1)
    segments = np.concatenate([arrays["inputs_segment_ids"], arrays["targets_segment_ids"]], axis=1)
    is_target = np.broadcast_to(np.repeat([False, True], lengths), tokens.shape)
    # Example by example, its inputs before its targets, and padding behind everything.
    place = np.where(segments > 0, 2 * segments + is_target, 2 * (tokens.shape[1] + 1))
    order = np.argsort(place, axis=1, kind="stable")
    tokens, segments, is_target = (np.take_along_axis(a, order, axis=1) for a in (tokens, segments, is_target))
    is_target = is_target & (segments > 0)
    features = {
        "decoder_input_tokens": _shifted(tokens, segments),
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": (segments > 0 if loss_on_inputs else is_target).astype(np.float32),
    }
    if prefix:
        # A position reads the token before it: one of the inputs, or, where an example begins, the start.
        reads_target = np.zeros_like(is_target)
        reads_target[:, 1:] = is_target[:, :-1] & (segments[:, 1:] == segments[:, :-1])
        features["decoder_causal_attention"] = ((segments > 0) & ~reads_target).astype(np.int32)
    if packed:
        features["decoder_segment_ids"] = segments
    return features


def _shifted(tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Each example of each row moved right by one, 0 at its start."""
    shifted = np.zeros_like(tokens)
    shifted[:, 1:] = np.where(segments[:, 1:] == segments[:, :-1], tokens[:, :-1], 0)
    return shifted


def feature_types(lengths: Mapping[str, int], packed: bool, convert: Convert) -> dict[str, tuple[int, type]]:
    """Row length and type of each feature that `convert` makes, without any data."""
    empty = fill([], lengths)
    return {name: (array.shape[1], array.dtype.type) for name, array in convert(empty, packed).items()}
