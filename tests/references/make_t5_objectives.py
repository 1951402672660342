"""Writes t5_objectives.json: what t5's own functions make of tokens and masks, its arithmetic of lengths, its packing
of prefix LM and its cutting of tokens.

Run it where the t5 package (0.9.4) can be imported:  python tests/references/make_t5_objectives.py
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import seqio
import t5.data.preprocessors as t5
import tensorflow as tf


class Vocabulary:
    """As much of a vocabulary as the functions ask for."""

    vocab_size = 1000


FUNCTIONS = (
    "noise_span_to_unique_sentinel",
    "nonnoise_span_to_unique_sentinel",
    "noise_span_to_sentinel",
    "nonnoise_span_to_sentinel",
    "noise_token_to_sentinel",
    "drop_noise_tokens",
    "drop_nonnoise_tokens",
)


@contextlib.contextmanager
def drawing(*numbers):
    """Lets t5 draw these numbers and no random ones."""
    random, given = t5.tf.random, iter(numbers)
    uniform, random.stateless_uniform = random.stateless_uniform, lambda *_, **__: tf.constant(next(given))
    try:
        yield
    finally:
        random.stateless_uniform = uniform


def regular(length, density, span, offset):
    with drawing(span, offset):
        return t5.regular_noise_mask(length, density, tf.constant([[1, 2], [3, 4]])).numpy().tolist()


def plain(example):
    return {name: value.tolist() for name, value in example.items()}


def packed(function, cut, segments, **options):
    dataset = tf.data.Dataset.from_tensor_slices({"targets": tf.constant(segments, tf.int32)})
    length = {"inputs": len(segments[0]), "targets": len(segments[0])}
    with drawing(cut):  # once, when the function is traced
        return [plain(example) for example in function(dataset, length, **options).as_numpy_iterator()]


def cutting():
    """What becomes of examples of given numbers of tokens."""
    features = {name: seqio.Feature(seqio.PassThroughVocabulary(100, eos_id=1)) for name in ("inputs", "targets")}
    sizes = [5, 0, 23, 1, 12]
    tokens = tf.RaggedTensor.from_row_lengths(range(3, 3 + sum(sizes)), sizes)

    def of(function, lengths, **options):
        dataset = tf.data.Dataset.from_tensor_slices({"targets": tokens})
        dataset = dataset.map(lambda x: {name: tf.ensure_shape(value, [None]) for name, value in x.items()})
        made = function(dataset, sequence_length=lengths, output_features=features, **options).as_numpy_iterator()
        return [x["targets"].tolist() for x in made]

    return {
        "sizes": sizes,
        "trim_tokens_at_front": {n: of(t5.trim_tokens_at_front, {"targets": n}) for n in (2, 6, 30)},
        "concatenate_and_split_to_fixed_length": {
            n: of(t5.concatenate_and_split_to_fixed_length, {"targets": n}) for n in (2, 8, 42, 100)
        },
        "split_tokens_to_inputs_length": {
            n: of(t5.split_tokens_to_inputs_length, {"inputs": n, "targets": n}) for n in (2, 8, 100)
        },
        "targets_for_prefix_lm_objective": {
            n: of(lambda d, sequence_length, output_features: t5.targets_for_prefix_lm_objective(
                d, sequence_length, output_features), {"inputs": n, "targets": n}) for n in (2, 8, 100)
        },
    }  # fmt: skip


def main() -> None:
    """Computes everything."""
    rng = np.random.default_rng(0)
    rows = []
    for length in (1, 2, 3, 7, 20, 50):
        for density in (0.0, 0.15, 0.5, 1.0):
            tokens = rng.integers(3, 800, length).tolist()
            noise = (rng.random(length) < density).tolist()
            made = {
                name: getattr(t5, name)(tf.constant(tokens), tf.constant(noise), Vocabulary, None).numpy().tolist()
                for name in FUNCTIONS
            }
            rows.append({"tokens": tokens, "noise": noise, **made})
    lengths = [
        {"inputs": inputs, "density": density, "mean": mean, "lengths": t5.random_spans_helper(
            inputs_length=inputs, noise_density=density, mean_noise_span_length=mean,
            extra_tokens_per_span_inputs=1, extra_tokens_per_span_targets=1, verbose=False,
        )}
        for inputs in (64, 100, 114, 128, 256, 400, 512, 1000, 1024, 2048)
        for density in (0.1, 0.15, 0.25, 0.3, 0.5)
        for mean in (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
    ]  # fmt: skip
    counts = []
    for length in (2, 3, 5, 9, 30, 100, 190, 512, 568, 1193):
        for density, mean in ((0.15, 3.0), (0.5, 3.0), (0.15, 10.0), (0.25, 2.0), (0.9, 1.5)):
            try:
                noise = t5.random_spans_noise_mask(length, density, tf.constant([[1, 2], [3, 4]]), mean).numpy()
            except (ValueError, tf.errors.InvalidArgumentError):
                continue  # where there are fewer kept tokens than spans
            spans = int((noise & ~np.concatenate([[False], noise[:-1]])).sum())
            counts.append(
                {"length": length, "density": density, "mean": mean, "noise": int(noise.sum()), "spans": spans}
            )
    masks = [
        {"length": n, "density": density, "span": span, "offset": offset, "mask": regular(n, density, span, offset)}
        for n in (0, 1, 9, 40)
        for density in (0.15, 0.25, 0.3, 0.5)
        for span in (1, 2, 5)
        for offset in (0, 1, 3)
    ]
    segments = rng.integers(3, 800, (2, 8))
    segments[1, 5:] = 0
    rows_packed = [
        {
            "cut": cut,
            "segments": segments.tolist(),
            "encoder_decoder": packed(t5.pack_prefix_lm_encoder_decoder, cut, segments),
            "decoder_only": packed(t5.pack_prefix_lm_decoder_only, cut, segments),
            "decoder_only_all": packed(t5.pack_prefix_lm_decoder_only, cut, segments, loss_on_targets_only=False),
        }
        for cut in range(1, 8)
    ]
    found = {
        "rows": rows,
        "lengths": lengths,
        "counts": counts,
        "regular": masks,
        "packed": rows_packed,
        "cutting": cutting(),
    }
    (Path(__file__).parent / "t5_objectives.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
