"""t5x_lite tpu: launches gin-configured jobs on Cloud TPU and looks after them. Loads neither JAX nor TensorFlow."""

from functools import partial

from t5x_lite.errors import UserError


def main(args) -> None:
    """The verb: what it does is in tpu/commands.py."""
    from t5x_lite.tpu import commands

    commands.run(args, partial(_job, args))


def _job(args, **given):
    """A job of flags, on top of what gin files bind, whose command the command line itself understands."""
    job = _described(args, **given)
    args.parsed(list(job.command))
    return job


def _described(args, **given):
    from t5x_lite.tpu.spec import JobSpec

    if args.gin_file:
        from t5x_lite import config

        return config.build(config.load(args.gin_file, args.gin, configured="t5x_lite.tpu.spec.JobSpec"), **given)
    if args.gin:
        raise UserError(
            f"--gin.{args.gin[0]} is given to tpu {args.action}",
            "it binds a field of a job's gin file, and none is given",
            "write the gin flags of training behind --, or give --gin_file",
        )
    return JobSpec(**given)
