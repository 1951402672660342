"""How an error reads."""

import pytest

from t5x_lite.errors import UserError


@pytest.mark.parametrize("part, sentence", [
    ("it is missing", "It is missing."),
    ("nothing reads it. ", "Nothing reads it."),
    ("correct the name, or --gin_file", "Correct the name, or --gin_file."),
    ("path, not a folder", "Path, not a folder."),
    ("--gin.MODEL_DIR names it", "--gin.MODEL_DIR names it."),
    ("-x is no flag", "-x is no flag."),
    ("config.gin is not there", "config.gin is not there."),
    ("train_steps is not set", "train_steps is not set."),
    ("runs/small, for one", "runs/small, for one."),
    ("vocabulary=bytes", "vocabulary=bytes."),
])  # fmt: skip
def test_a_part_begins_with_a_capital_unless_it_begins_with_a_name(part, sentence):
    assert str(UserError("runs is what", part, part)) == f"runs is what. {sentence} {sentence}"
