"""Writes t5_objectives.json: what t5's own functions make of tokens and masks, and its arithmetic of lengths.

Run it where the t5 package (0.9.4) can be imported:  python tests/references/make_t5_objectives.py
"""

import json
from pathlib import Path

import numpy as np
import t5.data.preprocessors as t5
import tensorflow as tf


class Vocabulary:
    """As much of a vocabulary as the functions ask for."""

    vocab_size = 1000


FUNCTIONS = (
    "noise_span_to_unique_sentinel",
    "nonnoise_span_to_unique_sentinel",
    "noise_span_to_sentinel",
    "noise_token_to_sentinel",
    "drop_noise_tokens",
    "drop_nonnoise_tokens",
)


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
    found = {"rows": rows, "lengths": lengths, "counts": counts}
    (Path(__file__).parent / "t5_objectives.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
