"""Eight CPU devices for every test, and fixtures that several files share."""

import os
import tempfile

# Before anything initialises JAX. Tests keep their own cache of what can be made again, unless told of one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("T5X_LITE_CACHE", os.path.join(tempfile.gettempdir(), "t5x_lite_test_cache"))

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
