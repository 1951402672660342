"""`python -m t5x_lite` is the command `t5x_lite`."""

from t5x_lite.cli import main

main()
