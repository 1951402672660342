"""Two text-to-text tasks over files of one's own: is a review good or bad, and how many stars does it give.

A line of the files holds a review, its label and its stars, separated by tabs. The files lie in the working
directory.
"""

import seqio
import tensorflow as tf

from t5x_lite.tasks import vocabulary
from t5x_lite.tasks.in_python import one_to_one

FILES = {"train": "reviews_train.tsv", "validation": "reviews_validation.tsv"}
TEXT = tf.TensorSpec([], tf.string)


def sentiment(line):
    """A fine film. | good | 4  ->  review: A fine film. | good"""
    review, label, _ = line["text"].split("\t")
    if label not in ("good", "bad"):
        raise ValueError(f"the label is {label!r}, neither good nor bad")
    return {"inputs": f"review: {review}", "targets": label}


def stars(line):
    """A fine film. | good | 4  ->  stars: A fine film. | 4"""
    review, _, number = line["text"].split("\t")
    return {"inputs": f"stars: {review}", "targets": number, "stars": int(number)}


def whole_number(decoded_model_output, example=None, is_target=False):
    """What the metric compares: the number of a record, and the number that the model wrote, or none."""
    if is_target:
        return int(example["stars"])
    return int(decoded_model_output) if decoded_model_output.isdecimal() else None


def accuracy(targets, predictions):
    """Percent of predictions that equal the target."""
    return {"accuracy": 100 * sum(t == p for t, p in zip(targets, predictions)) / len(targets)}


def mean_error(targets, predictions):
    """Stars between target and prediction; no number counts as 5."""
    return {"mean_error": sum(5 if p is None else abs(t - p) for t, p in zip(targets, predictions)) / len(targets)}


def records(lines):
    """Lines of text as the records that the functions above take."""
    return lines.map(lambda text: {"text": text})


def register(name, function, outputs, metrics, postprocessor=None):
    """Adds a task over the files above to seqio."""
    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource(FILES),
        preprocessors=[
            records,
            one_to_one(function, outputs),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            feature: seqio.Feature(vocabulary=vocabulary.chosen(), add_eos=True) for feature in ("inputs", "targets")
        },
        postprocess_fn=postprocessor,
        metric_fns=metrics,
    )


register("review_sentiment", sentiment, {"inputs": TEXT, "targets": TEXT}, [accuracy])
register(
    "review_stars",
    stars,
    {"inputs": TEXT, "targets": TEXT, "stars": tf.TensorSpec([], tf.int64)},
    [accuracy, mean_error],
    whole_number,
)

# Three examples of sentiment to one of stars.
seqio.MixtureRegistry.add("reviews", [("review_sentiment", 3.0), ("review_stars", 1.0)])
