"""What a process sets up before it computes: the persistent compilation cache."""

import os
from pathlib import Path

import jax


def cache_dir() -> Path:
    """Where t5x_lite keeps what it can make again: T5X_LITE_CACHE, or ~/.cache/t5x_lite."""
    return Path(os.environ.get("T5X_LITE_CACHE") or Path.home() / ".cache" / "t5x_lite")


def compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX is already told where to."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
