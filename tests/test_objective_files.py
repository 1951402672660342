"""gin/objectives: one file for each objective, with row lengths that it takes and fills."""

import numpy as np
import pytest

from t5x_lite import config
from t5x_lite.job import UNUSED_WHEN_DRY
from t5x_lite.tasks.objectives import lengths
from t5x_lite.tasks.objectives.corruption import Ids
from t5x_lite.tasks.objectives.named import OBJECTIVES
from t5x_lite.tasks.objectives.ragged import Ragged

# All rows but the last of a group are full.
FILLED = [name for name in OBJECTIVES if name.startswith("span_corruption")]


def test_there_is_a_file_for_each_objective():
    assert {path.stem for path in (config.root() / "objectives").glob("*.gin")} == set(OBJECTIVES)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_its_lengths_fit(name):
    files = ["models/t5_1_1_tiny.gin", "runs/pretrain.gin", f"objectives/{name}.gin"]
    job = config.build(config.load(files, ["TRAIN_STEPS=1"], optional=UNUSED_WHEN_DRY))
    assert job.mixture_or_task_name == f"text_{name}"
    ids = Ids(size=32100, sentinels=100, eos=1, encode=lambda text: list(range(3 * bool(text))))
    make = OBJECTIVES[name](job.feature_lengths, ids)
    documents = Ragged(np.arange(3, 3 + 80_000, dtype=np.int32) % 30_000 + 3, np.array([80_000]))
    # One document is cut to one of its chunks.
    made = make(documents, np.random.default_rng(0))
    for feature, length in job.feature_lengths.items():
        sizes = made[feature].lengths
        assert sizes.max() <= length
        if name in FILLED:
            assert (sizes[:-1] >= length - 1).all()


def test_span_lengths_are_computed_not_guessed():
    for name, mean in (("span_corruption", 3.0), ("span_corruption_mean_2", 2.0), ("span_corruption_mean_5", 5.0),
                       ("span_corruption_mean_10", 10.0), ("span_corruption_mean_20", 20.0)):  # fmt: skip
        files = ["models/t5_1_1_tiny.gin", "runs/pretrain.gin", f"objectives/{name}.gin"]
        job = config.build(config.load(files, ["TRAIN_STEPS=1"], optional=UNUSED_WHEN_DRY))
        inputs, targets = job.feature_lengths["inputs"], job.feature_lengths["targets"]
        assert lengths.span_corruption(inputs, 0.15, mean)[1] == targets
