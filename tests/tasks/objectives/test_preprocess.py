"""Objectives inside seqio: deterministic, new in each epoch, resumable, and the same tokens as seqio's own."""

import functools

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import lengths, packed_prefix
from t5x_lite.tasks.objectives.named import OBJECTIVES

module = pytest.importorskip("t5x_lite.tasks.objectives.preprocess")
packed, preprocess = module.packed, module.preprocess

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402


def documents(sizes):
    values = np.arange(3, 3 + sum(sizes), dtype=np.int32) % 200 + 3
    ragged = tf.RaggedTensor.from_row_lengths(values, sizes)
    return tf.data.Dataset.from_tensor_slices(ragged).map(lambda x: {"targets": tf.ensure_shape(x, [None])})


def task(name="span_corruption"):
    return seqio.Task(
        "objective_test",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: documents([50] * 128), splits=["train"]
        ),
        preprocessors=[functools.partial(preprocess, objective=OBJECTIVES[name])],
        output_features={k: seqio.Feature(seqio.ByteVocabulary(extra_ids=10_000)) for k in ("inputs", "targets")},
    )


def examples(name="span_corruption", lengths=None, **options):
    dataset = task(name).get_dataset(lengths or {"inputs": 64, "targets": 20}, shuffle=False, **options)
    return [(x["inputs"].tolist(), x["targets"].tolist()) for x in dataset.as_numpy_iterator()]


def test_a_task_is_full_deterministic_and_new_in_each_epoch():
    tokens, targets = lengths.span_corruption(64)
    once = examples(seed=1)
    assert {(len(i), len(t)) for i, t in once[:-1]} == {(64, targets)} and 6400 // tokens == len(once) - 1
    assert all(i[-1] == 1 and t[-1] == 1 for i, t in once)
    assert once == examples(seed=1) != examples(seed=2)
    twice = examples(seed=1, num_epochs=2)
    first, second = twice[: len(once)], twice[len(once) :]
    assert first == once and sum(a == b for a, b in zip(first, second)) <= 1


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_runs_in_seqio(name):
    found = examples(name, {"inputs": 300, "targets": 300}, seed=0)
    assert found and all(1 <= len(i) <= 300 and 1 <= len(t) <= 300 for i, t in found)
    texts = [bytes(t - 3 for t in targets if 3 <= t < 259) for _, targets in found]
    assert all(texts)


def test_wrong_lengths_are_said_when_the_dataset_is_made():
    with pytest.raises(UserError, match="makes 114 target tokens"):
        task().get_dataset({"inputs": 512, "targets": 10}, shuffle=False)
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS is None"):
        task().get_dataset(None, shuffle=False)


ARCHITECTURES = [
    (packed_prefix.pack_prefix_lm_encoder_decoder, packed_prefix.ENCODER_DECODER),
    (packed_prefix.pack_prefix_lm_decoder_only, packed_prefix.DECODER),
]


@pytest.mark.parametrize("pack, names", ARCHITECTURES)
def test_packed_prefixes_are_all_of_the_text_in_full_rows(pack, names):
    packing = seqio.Task(
        "packed_test",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: documents([50] * 300), splits=["train"]
        ),
        preprocessors=[
            functools.partial(
                preprocess, objective=packed_prefix.targets_for_prefix_lm_objective, names=("targets",)
            ),
            functools.partial(packed, pack=pack, names=names),
        ],
        output_features={
            **{name: seqio.Feature(seqio.ByteVocabulary(), add_eos=False) for name in names},
            "targets": seqio.Feature(seqio.ByteVocabulary(), required=False),
        },
    )  # fmt: skip
    lengths = {"inputs": 64, "targets": 64}

    def rows(seed):
        return list(packing.get_dataset(lengths, shuffle=False, seed=seed).as_numpy_iterator())

    made = rows(0)
    assert {(name, len(value)) for row in made for name, value in row.items()} == {(name, 64) for name in names}
    shown = [row[name] for row in made for name in ("encoder_input_tokens", "decoder_target_tokens") if name in row]
    # In 240 segments, 36 of them of the last group: none is left over.
    assert sum(map(np.count_nonzero, shown)) == 300 * 51 and len(shown) == 240
    same = [all((a[n] == b[n]).all() for n in names) for a, b in zip(made, rows(0))]
    other = [all((a[n] == b[n]).all() for n in names) for a, b in zip(made, rows(1))]
    assert all(same) and not all(other)
