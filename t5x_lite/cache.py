"""Where t5x_lite keeps what it can make again: compiled programs and the demo's corpus."""

import os
from pathlib import Path


def folder() -> Path:
    """T5X_LITE_CACHE, or ~/.cache/t5x_lite."""
    return Path(os.environ.get("T5X_LITE_CACHE") or Path.home() / ".cache" / "t5x_lite").expanduser()
