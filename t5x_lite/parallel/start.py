"""What a process sets up before it computes: the persistent compilation cache, and memory that is kept on a CPU."""

import ctypes
import importlib.util
import os
import sys

import jax

from t5x_lite import cache


def compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX is already told where to, or which ones."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Where only CPUs compute, keeps the memory of one step for the next; to be called before JAX finds its devices.

    XLA allocates the temporary buffers of a program, gigabytes for a train step, each time that it runs. The GNU C
    library gives blocks of that size back to the system, which then has to find and clear a million pages anew for
    each step.
    """
    others = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    if not sys.platform.startswith("linux") or (others and jax.config.jax_platforms != "cpu"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        # Only the arena of the main thread can hold blocks of that size, so programs are to be run there.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
