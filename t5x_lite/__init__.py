"""T5 text-to-text pretraining, fine-tuning and evaluation with JAX, from gin files."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the folders tasks/ and tpu/ stand beside this one; a wheel holds them inside.
if not (Path(__file__).parent / "tasks").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
