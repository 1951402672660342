"""t5x_lite demo: pretrain a small T5 on this installation's own English, evaluate it, fill spans, write the report.

The configuration is gin/examples/demo.gin; every part is the one that the other verbs use.
"""

import itertools
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from etils import epath

from t5x_lite import __version__, config, model_dir, output
from t5x_lite.data import batches as batching
from t5x_lite.data import examples
from t5x_lite.errors import RunError, UserError
from t5x_lite.job import Job
from t5x_lite.model.decoding import Strategy
from t5x_lite.program import ensemble_score_step
from t5x_lite.task import open_task
from t5x_lite.train.metrics import append_result, duration, say
from t5x_lite.verbs import report
from t5x_lite.verbs.infer import complete, of_records
from t5x_lite.verbs.train import train

# Training batches whose targets the unigram model is fitted on, and validation batches that both are measured on.
_FIT_BATCHES, _MEASURE_BATCHES = 200, 40

# Nats a token by which the trained model must be better than the unigram model: one that has learned nothing of
# the context comes close to it and no nearer.
_LEARNED = 0.5

# In the demo's folder: what it was made from, and that it was the demo that made it.
RECIPE = "RECIPE"

_SHORT = ["TRAIN_STEPS=40", "EVAL_PERIOD=20", "SAVE_PERIOD=20", "LOG_PERIOD=10", "EVAL_BATCHES=2"]


def main(args) -> None:
    """The verb; its whole form fails where the model has not learned."""
    began = time.monotonic()
    output.check_local(args.output, "--output")
    make_room(Path(args.output), recipe())
    bindings = [f"MODEL_DIR={args.output}", *(_SHORT if args.short else [])]
    job: Job = config.build(config.load(["examples/demo.gin"], bindings))
    train(job, config.resolved(), began)
    trained = time.monotonic()
    with model_dir.restored(args.output, (), ()) as model:
        ours, baseline = compare_with_unigram(model)
        show_samples(model)
    path = report.write(epath.Path(args.output))
    print(
        f"\nThe report is {path}\n"
        f"It took {duration(time.monotonic() - began)}: {duration(trained - began)} to make the corpus where there was "
        f"none, compile and train, {duration(time.monotonic() - trained)} to evaluate."
    )
    if not args.short:
        check_learned(ours, baseline, args.output)


def recipe() -> str:
    """What decides whether a folder can be gone on with: the version, the data and all of the configuration but its
    place and the periods that the short form changes."""
    from t5x_lite.tasks import corpus

    config.load(["examples/demo.gin"], ["MODEL_DIR=/demo"])
    return f"Made by t5x_lite demo {__version__} from {corpus.ensure()} and this configuration.\n{config.resolved()}"


def make_room(folder: Path, wanted: str) -> None:
    """Makes the folder, or leaves it to go on with; one of another recipe is moved aside, for nothing is deleted.

    Args:
      folder: of the demo.
      wanted: the recipe.

    Raises:
      UserError: the folder is not the demo's, or cannot be written.
    """
    output.check_folder(folder, "--output")
    folder = folder.absolute()
    marker = folder / RECIPE
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise UserError(
                f"--output={folder} holds files that are not of this demo",
                f"a folder of the demo has a file {RECIPE}, since version {__version__}",
                f"choose another --output, or if it is a demo of an older version: rm -r {folder}",
            )
        if marker.read_bytes() != wanted.encode():
            aside = next(a for n in itertools.count(1) if not (a := Path(f"{folder}.{n}")).exists())
            folder.rename(aside)
            say(
                f"{folder} is a demo of another version, data or configuration: it is now {aside}, and a new one begins"
            )
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(wanted, encoding="utf-8")


def check_learned(ours: float, baseline: float, folder: str) -> None:
    """Fails where the model is not better than the unigram model by `_LEARNED`.

    Args:
      ours, baseline: losses in nats a token.
      folder: of the demo.

    Raises:
      RunError: it is not.
    """
    if not baseline - ours >= _LEARNED:
        raise RunError(
            f"the model is {baseline - ours:.3f} nats a token better than a unigram model, and should be {_LEARNED}",
            f"the checkpoint and the report in {folder} are whole",
            "see its loss curve: this installation does not learn as it should",
        )


def compare_with_unigram(model: model_dir.Restored) -> tuple[float, float]:
    """Prints the loss on non-sentinel target tokens beside that of a unigram model fitted on training targets.

    Returns:
      The two losses, in nats a token.
    """
    from t5x_lite.tasks.vocabulary import SENTINELS

    job = model.job
    task, explain = open_task(job)
    vocabulary = task.output_features["targets"].vocabulary
    ids = vocabulary.vocab_size
    first_sentinel = ids - SENTINELS

    train_stream = examples.train_streams(task, [0], 1, job.feature_lengths, True, job.seed, False, explain)[0]
    counts = np.ones(ids)  # one more of each, so that an unseen token is not impossible
    for row in train_stream.take(_FIT_BATCHES * job.batch_size):
        for example in row:
            counts += np.bincount(example["targets"], minlength=ids)
    train_stream.close()
    counts[first_sentinel:] = 0
    with np.errstate(divide="ignore"):
        unigram = np.log(counts / counts.sum())

    score = ensemble_score_step((model.program,))
    total, unigram_total, tokens = 0.0, 0.0, 0
    [(_, stream)] = examples.evaluation_streams(task, "validation", job.feature_lengths, True, job.seed, False, explain)
    rows = model.rows(job.batch_size)
    convert = model.program.convert
    for batch in batching.eval_batches(stream, job.feature_lengths, rows, True, convert, _MEASURE_BATCHES):
        targets = batch["decoder_target_tokens"]
        counted = (targets > 0) & (targets < first_sentinel)
        log_probability, _ = jax.device_get(score((model.params,), {k: model.place(v) for k, v in batch.items()}))
        total -= log_probability[counted].sum()
        unigram_total -= unigram[targets[counted]].sum()
        tokens += int(counted.sum())
    stream.close()
    ours, baseline = float(total / tokens), float(unigram_total / tokens)
    append_result(
        model.directory / "eval",
        {
            "step": model.step,
            "task": job.mixture_or_task_name,
            "split": "validation",
            "non_sentinel_loss": ours,
            "baseline_unigram_loss": baseline,
            "tokens": tokens,
        },
    )
    print(f"\nValidation loss on {tokens:,} non-sentinel target tokens, in nats a token:")
    print(f"  this model     {ours:.3f}\n  unigram model  {baseline:.3f}\n  difference     {baseline - ours:.3f}")
    return ours, baseline


def show_samples(model: model_dir.Restored, count: int = 4) -> None:
    """Prints held-out sentences with missing spans, the true spans, and what the model fills in."""
    from t5x_lite.tasks import corpus, documents

    rng = random.Random(model.job.seed)
    sentences = list(_sentences(documents.texts(corpus.files("validation"))))
    pairs = [masked(sentence, rng) for sentence in rng.sample(sentences, count)]
    source = of_records(model.job.vocabulary, [{"inputs": inputs} for inputs, _ in pairs], count, "samples")
    length = model.job.feature_lengths["targets"]
    results = complete(model_dir.Ensemble((model,)), source, Strategy(), length, batch_size=count)
    samples = [
        {**result, "targets": targets, "prediction": asked_for(result["prediction"])}
        for result, (_, targets) in zip(results, pairs)
    ]
    output.write_lines(model.directory / "eval" / "samples.jsonl", samples)
    for sample in samples:
        print(f"\ninput:      {sample['inputs']}\ntarget:     {sample['targets']}\nprediction: {sample['prediction']}")


def _sentences(texts: Iterator[str]) -> Iterator[str]:
    """Sentences of ten to thirty words."""
    for text in texts:
        for sentence in re.split(r"(?<=[.!?])\s+", text.replace("\n", " ")):
            if 10 <= len(sentence.split()) <= 30:
                yield sentence


def asked_for(prediction: str) -> str:
    """The prediction for the two spans of `masked`: training inputs have more, so the model goes on after them."""
    return prediction.partition("<extra_id_2>")[0].strip()


def masked(sentence: str, rng: random.Random) -> tuple[str, str]:
    """The sentence with two spans of one to three words replaced by sentinels, and the target for them."""
    words = sentence.split()
    half = len(words) // 2
    inputs, targets, kept = [], [], 0
    for number, (low, high) in enumerate(((1, half), (half + 1, len(words)))):
        length = rng.randint(1, min(3, high - low))
        start = rng.randint(low, high - length)
        inputs += [*words[kept:start], f"<extra_id_{number}>"]
        targets += [f"<extra_id_{number}>", *words[start : start + length]]
        kept = start + length
    return " ".join(inputs + words[kept:]), " ".join(targets)
