"""A process of several: trains the tiny job for three steps under every shipped layout, and prints its losses.

python -m tests.train.every_layout ADDRESS PROCESSES NUMBER
"""

import json
import sys

import jax

from tests.train import tiny


def losses() -> dict[str, list[float]]:
    """Of each layout, over the devices of all processes."""
    found = {}
    for name in tiny.MESHES:
        run = tiny.runner(tiny.job(tiny.on_mesh(name)), jax.device_count())
        found[name] = [float(m["loss"]) for m in run([tiny.rows(seed) for seed in range(3)])[1]]
    return found


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(losses()))
