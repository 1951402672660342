"""t5x_lite infer: complete texts with a checkpoint."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from t5x_lite import model_dir
from t5x_lite.data.requests import grouped, inputs_batch
from t5x_lite.errors import UserError
from t5x_lite.program import greedy_step
from t5x_lite.train.metrics import say


def main(args) -> None:
    """The verb: prints the completion of --text, or writes a JSON line for each input."""
    texts = [args.text] if args.text is not None else read_inputs(args.input)
    with model_dir.restored(args.checkpoint, args.gin_file, args.gin) as model:
        results = complete(model, texts, args.batch_size if args.text is None else 1, args.max_decode_length)
        if args.text is not None and args.output is None:
            print(next(results)["prediction"])
        else:
            count = write_lines(args.output, results)
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
        output, scores = jax.device_get(decode(model.params, model.place(inputs_batch(tokens, rows))))
        for text, ids, score in zip(group, output, scores):
            yield {"inputs": text, "prediction": codec.decode(until_end(ids, codec.eos_id)), "score": float(score)}


def until_end(ids: np.ndarray, eos: int) -> list[int]:
    """Ids up to the end token, without it."""
    ends = np.flatnonzero(ids == eos)
    return ids[: ends[0] if len(ends) else None].tolist()


def read_inputs(path: str) -> list[str]:
    """The inputs of a file: the field `inputs` of .jsonl lines, else lines of text.

    Raises:
      UserError: the file is missing or empty, or a line has no `inputs`.
    """
    if path.endswith(".jsonl"):
        return [record["inputs"] for record in read_records(path, ("inputs",))]
    lines = _text(path).splitlines()
    if not lines:
        raise UserError(f"--input={path} is empty", "there is nothing to complete", "give a file with a line an input")
    return lines


def read_records(path: str, fields: tuple[str, ...]) -> list[dict]:
    """The records of a JSONL file, each with text in all `fields`.

    Raises:
      UserError: naming the line that is none.
    """
    records = []
    wanted = " and ".join(fields)
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"line {number} of {path} is not JSON", str(error), "correct that line") from error
        if not isinstance(record, dict) or not all(isinstance(record.get(f), str) for f in fields):
            raise UserError(
                f"line {number} of {path} is {line[:80]}",
                f"it must be an object with text in {wanted}",
                "correct that line",
            )
        records.append(record)
    if not records:
        raise UserError(f"--input={path} is empty", "it holds no record", f"give a JSONL file with {wanted}")
    return records


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input={path} cannot be read", str(error), "correct --input") from error


def write_lines(path: str | None, results: Iterator[dict]) -> int:
    """Writes results as JSON lines as they come, to a file or to stdout; returns how many."""
    count = 0
    with contextlib.nullcontext(sys.stdout) if path is None else open(path, "w", encoding="utf-8") as file:
        for result in results:
            count += 1
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
            file.flush()
    return count
