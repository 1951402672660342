"""Jobs on Cloud TPU: what a slice is called, and launching onto it. Needs the standard library and gcloud only."""

if __name__ != "t5x_lite.tpu":
    # One name for one package, as for t5x_lite.tasks.
    raise ImportError(f"the package is imported as {__name__!r}; its name is t5x_lite.tpu")
