"""Preprocessors that cut tokens give what t5 gives: references/make_t5_objectives.py says how that was made."""

import json

import numpy as np
import pytest

from t5x_lite.errors import UserError

segmentation = pytest.importorskip("t5x_lite.tasks.segmentation")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

FEATURES = {name: seqio.Feature(seqio.PassThroughVocabulary(100, eos_id=1)) for name in ("inputs", "targets")}


@pytest.fixture(scope="module")
def cutting(references):
    return json.loads((references / "t5_objectives.json").read_text())["cutting"]


def examples(sizes):
    tokens = tf.RaggedTensor.from_row_lengths(range(3, 3 + sum(sizes)), sizes)
    dataset = tf.data.Dataset.from_tensor_slices({"targets": tokens})
    return dataset.map(lambda example: {"targets": tf.ensure_shape(example["targets"], [None])})


def targets(dataset):
    return [example["targets"].tolist() for example in dataset.as_numpy_iterator()]


def test_trimmed_at_the_front(cutting):
    for length, expected in cutting["trim_tokens_at_front"].items():
        made = segmentation.trim_tokens_at_front(examples(cutting["sizes"]), {"targets": int(length), "inputs": 9})
        assert targets(made) == expected


def test_run_together_and_cut(cutting):
    for length, expected in cutting["concatenate_and_split_to_fixed_length"].items():
        made = segmentation.concatenate_and_split_to_fixed_length(
            examples(cutting["sizes"]), {"targets": int(length)}, FEATURES
        )
        assert targets(made) == expected


def test_a_position_between_segments_is_resumed(tmp_path):
    made = segmentation.concatenate_and_split_to_fixed_length(examples([30, 1, 30]), {"targets": 8}, FEATURES)
    whole, iterator = targets(made), iter(made)
    taken = [next(iterator) for _ in range(3)]
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "position"))
    iterator = iter(made)
    tf.train.Checkpoint(iterator=iterator).read(path).assert_consumed()
    assert len(taken) == 3 and [example["targets"].numpy().tolist() for example in iterator] == whole[3:]


def test_random_lengths():
    """From 8 to less than the inputs, log-uniformly; one for all of an example but its last segment."""
    sizes = [0, 1, *[200] * 400]
    with seqio.map_seed_manager(0):
        made = targets(
            segmentation.split_tokens_to_random_length(examples(sizes), {"inputs": 65, "targets": 9}, FEATURES)
        )
    assert sum(made, []) == list(range(3, 3 + sum(sizes)))
    starts = np.cumsum([3, *sizes])[2:-1]
    first = np.array([len(segment) for segment in made if segment[0] in set(starts.tolist())])
    assert len(first) == 400 and first.min() == 8 and 58 < first.max() < 64
    assert abs((first < 22.6).mean() - 0.5) < 0.08  # sqrt(8 * 64)


@pytest.mark.parametrize(
    "function, lengths",
    [
        ("trim_tokens_at_front", {"targets": 1}),
        ("concatenate_and_split_to_fixed_length", {"inputs": 9}),
        ("concatenate_and_split_to_fixed_length", None),
        ("split_tokens_to_random_length", {"inputs": 8, "targets": 512}),
    ],
)
def test_no_room_is_said(function, lengths):
    options = {} if function.startswith("trim") else {"output_features": FEATURES}
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS is"):
        getattr(segmentation, function)(examples([9]), lengths, **options)
