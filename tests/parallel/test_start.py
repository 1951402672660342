"""What a process sets up before it computes, seen from outside."""

import subprocess
import sys

import pytest

from tests.conftest import as_shipped

# Faults of pages in twenty runs of a program with 64 MiB of temporary buffers, after ten that are not counted.
FAULTS = """
import resource, sys
from t5x_lite.parallel import start
if sys.argv[1] == "keep":
    start.keep_memory()
import jax, jax.numpy as jnp
program = jax.jit(lambda x: (jnp.outer(x, x) @ x[:, None]).sum())
x = jnp.ones(4096)
counts = []
for _ in range(30):
    program(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[-1] - counts[9])
"""


def faults(how: str) -> int:
    env = as_shipped() | {"JAX_NUM_CPU_DEVICES": "1"}
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], env=env, capture_output=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of the GNU C library")
def test_the_memory_of_a_step_is_kept_for_the_next_on_a_cpu():
    left = faults("leave")
    if left < 20 * 1000:
        pytest.skip("this system gives memory in large pages, or keeps it itself")
    assert faults("keep") < left / 4
