"""t5x_lite score: log-probabilities of given targets."""

from collections.abc import Iterator

import jax

from t5x_lite import model_dir, output
from t5x_lite.data.requests import grouped, pairs_batch, read_records
from t5x_lite.program import score_step
from t5x_lite.train.metrics import say


def main(args) -> None:
    """The verb: writes a JSON line for each line of --input."""
    records = read_records(args.input, ("inputs", "targets"))
    output.check_file(args.output, "--output", args.input)
    with model_dir.restored(args.checkpoint, args.gin_file, args.gin) as model:
        count = output.write_lines(args.output, scored(model, records, args.batch_size))
        say(f"{count} targets scored with the checkpoint of step {model.step}")


def scored(model: model_dir.Restored, records: list[dict], batch_size: int) -> Iterator[dict]:
    """Each record with `score`, its targets' log-probability in nats, end token included, and their `tokens`.

    Inputs and targets count whole, however long the model was trained with: unlike `eval`, which cuts both to
    TASK_FEATURE_LENGTHS.
    """
    from t5x_lite.tasks.codec import load

    codec = load(model.job.vocabulary)
    score, rows = score_step(model.program), model.rows(batch_size)
    for group in grouped(records, rows):
        pairs = [
            ([*codec.encode(r["inputs"]), codec.eos_id], [*codec.encode(r["targets"]), codec.eos_id]) for r in group
        ]
        batch = {name: model.place(array) for name, array in pairs_batch(pairs, rows, model.program.convert).items()}
        log_probabilities, _ = jax.device_get(score(model.params, batch))
        for record, (_, targets), row in zip(group, pairs, log_probabilities):
            yield record | {"score": float(row.sum()), "tokens": len(targets)}
