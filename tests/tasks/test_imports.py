"""Where seqio is installed every module of tasks is there: tests that skip without it would else skip unseen."""

import importlib
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
MODULES = [
    ".".join(("t5x_lite", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted((ROOT / "tasks").rglob("*.py"))
]


def test_every_module_of_tasks_can_be_imported():
    pytest.importorskip("seqio")
    for module in MODULES:
        importlib.import_module(module)


def test_no_test_skips_for_a_module_that_is_not_of_tasks():
    for path in TESTS.rglob("test_*.py"):
        named = re.findall(r'importorskip\("(t5x_lite[\w.]*)"', path.read_text(encoding="utf-8"))
        assert set(named) <= set(MODULES), f"{path} skips for {named}"
