"""No data but what a test writes."""

import pytest


@pytest.fixture(autouse=True)
def no_other_data(tmp_path, monkeypatch):
    records = pytest.importorskip("t5x_lite.tasks.records")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_tfds"))
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    yield
    records.bind(None)
