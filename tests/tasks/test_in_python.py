"""Python functions of a record as preprocessors: what they say of a record that they refuse."""

import functools

import pytest

in_python = pytest.importorskip("t5x_lite.tasks.in_python")

import tensorflow as tf  # noqa: E402

from t5x_lite.tasks import sources  # noqa: E402


def picky(record, *, least):
    if record["x"] < least:
        raise ValueError("its x is too small")
    return record


def test_what_is_wrong_with_a_record_is_said_with_its_text_and_the_function():
    preprocessor = in_python.one_to_one(functools.partial(picky, least=2), {"x": tf.TensorSpec([], tf.int32)})
    with pytest.raises(tf.errors.OpError) as caught:
        list(preprocessor(tf.data.Dataset.from_tensor_slices({"x": [2, 1]})))
    assert str(sources.explain(caught.value)) == (
        'The record {"x": 1} gives no example. Its x is too small (picky). '
        "Correct the record, or take it out of the data."
    )


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"x": "a"}, "it gives no 'y', which its outputs name"),
        ({"x": "a", "y": 3}, "the 'y' that it gives is 3, no text"),
    ],
)
def test_what_a_function_does_not_give_is_named(made, reason):
    outputs = dict.fromkeys("xy", tf.TensorSpec([], tf.string))
    preprocessor = in_python.one_to_one(lambda record: made, outputs)
    with pytest.raises(tf.errors.OpError, match=f"TypeError: {reason}"):
        list(preprocessor(tf.data.Dataset.from_tensor_slices({"x": [1]})))


def test_lists_of_arrays_of_one_shape():
    spec = {"idx": tf.TensorSpec([None, 2], tf.int32)}
    preprocessor = in_python.one_to_one(lambda record: {"idx": [[record["x"], k] for k in range(record["x"])]}, spec)
    made = preprocessor(tf.data.Dataset.from_tensor_slices({"x": [2, 0, 1]}))
    found = [example["idx"].tolist() for example in made.as_numpy_iterator()]
    assert found == [[[2, 0], [2, 1]], [], [[1, 0]]]
