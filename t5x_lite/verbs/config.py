"""t5x_lite config: the resolved configuration, as gin text that can be run again."""

from t5x_lite import config
from t5x_lite.job import UNUSED_WHEN_DRY


def main(args) -> None:
    """The verb: prints what the files and flags amount to."""
    config.load(args.gin_file, args.gin, optional=UNUSED_WHEN_DRY)
    print(config.resolved(), end="")
