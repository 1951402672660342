"""t5x_lite infer: complete texts with a checkpoint."""

from collections.abc import Iterator

import jax

from t5x_lite import model_dir, output
from t5x_lite.data.requests import grouped, inputs_batch, read_inputs, until_end
from t5x_lite.program import greedy_step
from t5x_lite.train.metrics import say


def main(args) -> None:
    """The verb: prints the completion of --text, or writes a JSON line for each input."""
    texts = [args.text] if args.text is not None else read_inputs(args.input)
    output.check_file(args.output, "--output", args.input)
    with model_dir.restored(args.checkpoint, args.gin_file, args.gin) as model:
        results = complete(model, texts, args.batch_size if args.text is None else 1, args.max_decode_length)
        if args.text is not None and args.output is None:
            print(next(results)["prediction"])
        else:
            count = output.write_lines(args.output, results)
            say(f"{count} of {len(texts)} inputs completed with the checkpoint of step {model.step}")


def complete(
    model: model_dir.Restored, texts: list[str], batch_size: int, max_length: int | None = None
) -> Iterator[dict[str, str | float]]:
    """Greedy completions in the order of the texts.

    Args:
      model: the restored model.
      texts: inputs, sentinels written as <extra_id_0>, ...
      batch_size: rows computed together.
      max_length: most tokens of a completion; None: the targets length that the model was trained with.

    Yields:
      `inputs`, `prediction` and `score`, the log-probability of the completion in nats.
    """
    from t5x_lite.tasks.codec import load

    codec = load(model.job.vocabulary)
    decode = greedy_step(model.program, max_length or model.job.feature_lengths["targets"], codec.eos_id)
    rows = model.rows(batch_size)
    for group in grouped(texts, rows):
        tokens = [[*codec.encode(text), codec.eos_id] for text in group]
        completed, scores = jax.device_get(decode(model.params, model.place(inputs_batch(tokens, rows))))
        for text, ids, score in zip(group, completed, scores):
            yield {"inputs": text, "prediction": codec.decode(until_end(ids, codec.eos_id)), "score": float(score)}
