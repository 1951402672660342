"""Loads TensorFlow without its remarks on the machine.

TensorFlow 2.21 writes to stderr while it is loaded and when it first looks for
devices (oneDNN, CUDA), before any of its logging settings count. On a terminal that
shows progress they look like errors.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


def load_tensorflow() -> None:
    """Imports TensorFlow and seqio and hides the GPUs from them, whose memory belongs to JAX."""
    if "seqio" in sys.modules:
        return
    with held_back():
        import seqio  # noqa: F401
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Keeps what is written to the process's stderr, also by C++, and shows it only if something is raised."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(stderr, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
