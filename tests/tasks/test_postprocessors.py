"""Postprocessors give what t5 0.9.4 gives."""

import json
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.tasks import postprocessors

STORED = json.loads((Path(__file__).parents[1] / "references/t5_metrics.json").read_text(encoding="utf-8"))
CASES = STORED["postprocessors"]


def as_seqio_gives_it(value):
    """Text as bytes, lists as arrays, whole numbers as numpy's."""
    if isinstance(value, list):
        return np.array([as_seqio_gives_it(item) for item in value])
    if isinstance(value, str):
        return value.encode()
    return np.int32(value) if type(value) is int else value


def as_json_has_it(value):
    return value.decode() if isinstance(value, bytes) else value.item()


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_equal_to_t5(name):
    for output, example, is_target, options, expected in (case[1:] for case in CASES if case[0] == name):
        given = {key: as_seqio_gives_it(value) for key, value in example.items()}
        result = getattr(postprocessors, name)(output, example=given, is_target=is_target, **options)
        plain = json.loads(json.dumps(result, default=as_json_has_it))
        assert plain == expected or plain != plain and expected != expected, (output, example)


def test_every_postprocessor_has_a_reference():
    public = {name for name, value in vars(postprocessors).items() if callable(value) and not name.startswith("_")}
    written = {name for name in public if getattr(postprocessors, name).__module__ == postprocessors.__name__}
    assert written == {name for name, *_ in CASES}


@pytest.mark.parametrize(
    "prediction, referent, expected",
    [
        ("the Fuzzy bunny", "bunny", 1),
        ("bunny", "a fuzzy bunny", 1),
        ("Bob", "Bob's hat", 0),
        ("Bob's", "Bob's hat", 1),
        ("", "bunny", -1),
        ("their", "bunny", -1),
        (b"bunny", "bunny", 1),
    ],
)
def test_whether_a_phrase_names_the_referent(prediction, referent, expected):
    example = {"targets_pretokenized": referent.encode(), "label": 1}
    assert postprocessors.wsc_simple(prediction, example) == expected


def test_a_group_can_be_a_key():
    example = {"answers": [b"x"], "idx/passage": np.int32(1), "idx/query": np.int32(2)}
    assert {postprocessors.record("x", example, is_target=True)["group"]} == {(1, 2)}
