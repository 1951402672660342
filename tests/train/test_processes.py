"""The same losses on one process and on two, under every shipped layout."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train import tiny

ROOT = Path(__file__).parents[2]


def test_two_processes_train_as_one_under_every_layout():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.every_layout", address, "2", str(number)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    _, metrics = tiny.runner(tiny.job())([tiny.rows(seed) for seed in range(3)])
    alone = [float(m["loss"]) for m in metrics]
    for out, _ in said:
        found = json.loads(out.splitlines()[-1])
        assert found == {name: pytest.approx(alone, rel=1e-5) for name in tiny.MESHES}
