"""Every format gives the examples that T5 gives: references/make_t5_examples.py says how those were made."""

import importlib
import json
from pathlib import Path

import pytest

CASES = json.loads((Path(__file__).parents[2] / "references/t5_examples.json").read_text(encoding="utf-8"))


def examples(function, record, arguments):
    """The examples of a record; None where it gives an error."""
    try:
        made = function(record, **arguments)
    except ValueError:
        return None
    return [made] if isinstance(made, dict) else made or []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['function']} {list(case['arguments'].values())}")
def test_examples_are_those_of_t5(case):
    function = getattr(importlib.import_module(f"t5x_lite.tasks.formats.{case['module']}"), case["function"])
    assert len(case["records"]) == len(case["examples"]) > 0
    for record, expected in zip(case["records"], case["examples"]):
        assert examples(function, record, case["arguments"]) == expected, record
