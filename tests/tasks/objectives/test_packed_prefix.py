"""Prefix LM in full rows: the features equal t5's for every cut, and two segments can be put together again."""

import json

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import packed_prefix as of
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.ragged import padded, ragged

IDS = Ids(size=1000, sentinels=100, eos=1, encode=list)


class Drawn:
    """A generator that draws one number."""

    def __init__(self, number):
        self.number = number

    def integers(self, low, high, size):
        assert low <= self.number < high
        return np.full(size, self.number)


@pytest.fixture(scope="module")
def reference(references):
    return json.loads((references / "t5_objectives.json").read_text())


def rows(features):
    return [dict(zip(features, (column.tolist() for column in row))) for row in zip(*features.values())]


def test_rows_are_those_of_t5(reference):
    for case in reference["packed"]:
        segments, rng = np.array(case["segments"], np.int32), Drawn(case["cut"])
        both = of.pack_prefix_lm_encoder_decoder(segments, rng)
        assert rows(both) == case["encoder_decoder"] and tuple(both) == of.ENCODER_DECODER
        alone = of.pack_prefix_lm_decoder_only(segments, rng)
        assert rows(alone) == case["decoder_only"] and tuple(alone) == of.DECODER
        assert rows(of.pack_prefix_lm_decoder_only(segments, rng, False)) == case["decoder_only_all"]
        assert {array.dtype for array in (both | alone).values()} == {np.dtype(np.int32)}


def test_segments_are_those_of_t5(reference):
    cutting = reference["cutting"]
    ends = np.cumsum([3, *cutting["sizes"]])
    documents = ragged([range(start, end) for start, end in zip(ends[:-1], ends[1:])])
    for length, expected in cutting["targets_for_prefix_lm_objective"].items():
        length = int(length)
        made = of.targets_for_prefix_lm_objective({"inputs": length, "targets": length}, IDS)(documents, Drawn(0))
        assert padded(made["targets"], length).tolist() == expected


def test_every_segment_is_in_one_row_and_every_cut_is_equally_likely():
    segments = np.arange(3, 3 + 6000 * 10, dtype=np.int32).reshape(6000, 10)
    made = of.pack_prefix_lm_encoder_decoder(np.append(segments, segments[:1], axis=0), np.random.default_rng(0))
    assert len(made["encoder_positions"]) == 3000  # one segment was left over
    whole = [
        np.concatenate([inputs[inputs_of == k], targets[targets_of == k]])
        for inputs, inputs_of, targets, targets_of in zip(
            made["encoder_input_tokens"], made["encoder_segment_ids"],
            made["decoder_target_tokens"], made["decoder_segment_ids"],
        )
        for k in (1, 2)
    ]  # fmt: skip
    assert (np.array(whole) == segments).all()
    counts = np.bincount((made["encoder_segment_ids"] == 1).sum(axis=1), minlength=10)[1:]
    # Chi-squared with 8 degrees of freedom passes 26.1 once in a thousand.
    assert counts.sum() == 3000 and len(counts) == 9 and ((counts - 3000 / 9) ** 2 / (3000 / 9)).sum() < 26.1


@pytest.mark.parametrize("lengths", [{"inputs": 511, "targets": 511}, {"inputs": 512, "targets": 510}, None])
def test_lengths_that_do_not_fit_each_other(lengths):
    with pytest.raises(UserError, match="--gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 512}\""):
        of.packed_length(lengths)
