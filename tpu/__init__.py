"""Cloud TPU hardware: what a slice is called, and what to ask for. Needs the standard library only."""

if __name__ != "t5x_lite.tpu":
    # One name for one package, as for t5x_lite.tasks.
    raise ImportError(f"the package is imported as {__name__!r}; its name is t5x_lite.tpu")
