"""Devices of TPU slices that are not here, to compile for: libtpu knows every slice on any machine."""

import importlib.util
import os
from collections.abc import Sequence

import jax

from t5x_lite.errors import UserError

# What libtpu reads where the user has not said otherwise. It must ask no metadata server, which is there on TPU hosts
# alone and would be waited for for minutes; it may compile in two processes at once; an error alone is worth a line.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: it says what this machine would be
}


def devices(generation: str, shape: Sequence[int], num_slices: int = 1) -> list[jax.Device]:
    """JAX devices of one or several equal slices, which compile programs and run none.

    Args:
      generation: a key of `chips.CHIPS`.
      shape: chips along each side of one slice.
      num_slices: how many.

    Raises:
      UserError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu is not installed", "it is the compiler for TPUs", "install it: pip install 't5x_lite[tpu]'"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = {"num_slices": num_slices} if num_slices > 1 else {}
    if generation == "v4":  # as its chips show themselves to JAX, both cores as one device
        options["chip_config_name"] = "megacore"
    name = f"{generation}:{'x'.join(map(str, shape))}"
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
