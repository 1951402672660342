"""Every architecture by the same commands: train, resume, evaluate, complete, score; adapters on an old checkpoint."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from t5x_lite import cli, model_dir
from t5x_lite.train import checkpoint

ARCHITECTURES = {
    "shared": {"structure": "shared"},
    "language_model": {"structure": "language_model", "encoder_layers": 0},
    "prefix_lm": {"structure": "prefix_lm", "encoder_layers": 0},
    "umt5": {"relative_bias_per_layer": True},
}

PAIRS = [
    {"inputs": "Ba da ta.", "targets": "ga"},
    {"inputs": "Re.", "targets": "li lo"},
    {"inputs": "Gu di.", "targets": "ba bo"},
]
MODULE = f"""
import seqio
import tensorflow as tf

from t5x_lite.tasks import vocabulary

PAIRS = {PAIRS}


def examples(split, shuffle_files=False, seed=None):
    return tf.data.Dataset.from_tensor_slices({{k: [pair[k] for pair in PAIRS] for k in PAIRS[0]}})


seqio.TaskRegistry.add(
    "three_pairs",
    source=seqio.FunctionDataSource(examples, splits=["train", "validation"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={{name: seqio.Feature(vocabulary.chosen()) for name in ("inputs", "targets")}},
)
seqio.MixtureRegistry.add("text_and_pairs", [("text_span_corruption", 1.0), ("three_pairs", 0.01)])
"""


@pytest.fixture(scope="module")
def text_and_pairs(write_module):
    """Macros of a mixture whose second task is PAIRS."""
    write_module("three_pairs_task", MODULE)
    return {"MIXTURE_OR_TASK_NAME": "text_and_pairs", "MIXTURE_OR_TASK_MODULE": "three_pairs_task"}


def parameters(directory, step):
    with model_dir.restored(f"{directory}@{step}", (), ()) as model:
        return flatten_dict(jax.device_get(model.params))


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_commands_serve_every_architecture(name, train_flags, text_and_pairs, tmp_path, capsys):
    changed = {f"architecture.Architecture.{field}": value for field, value in ARCHITECTURES[name].items()}
    model = tmp_path / "model"
    # Enough batches for the whole of the validation split.
    periods = {"TRAIN_STEPS": 8, "SAVE_PERIOD": 4, "EVAL_PERIOD": 8, "EVAL_BATCHES": 1000}
    flags = train_flags(model, **periods, **text_and_pairs, **changed)
    assert cli.run(flags) == 0
    lines = jsonl(model / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    trained = {line["task"]: line for line in jsonl(model / "eval/results.jsonl")}
    assert trained.keys() == {"text_span_corruption", "three_pairs"}
    if name == "prefix_lm":  # resumed from step 4, it ends in the same bits
        whole = parameters(model, 8)
        shutil.rmtree(model / "checkpoints/8")
        capsys.readouterr()
        assert cli.run(flags) == 0
        assert "training from step 4 to 8" in capsys.readouterr().err
        again = parameters(model, 8)
        assert all(np.array_equal(whole[path], again[path]) for path in whole)
    capsys.readouterr()

    # Other ways to the same numbers: the eval verb of unpacked rows; score of the written targets.
    assert cli.run(["eval", f"--checkpoint={model}", f"--output_dir={tmp_path / 'eval'}"]) == 0
    evaluated = {line["task"]: line for line in jsonl(tmp_path / "eval/results.jsonl")}
    assert evaluated.keys() == trained.keys()
    for task, line in evaluated.items():
        assert line["tokens"] == trained[task]["tokens"]
        assert line["loss"] == pytest.approx(trained[task]["loss"], rel=1e-5)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    score = ["score", f"--checkpoint={model}", f"--input={tmp_path / 'pairs.jsonl'}"]
    assert cli.run([*score, f"--output={tmp_path / 'together.jsonl'}"]) == 0
    assert cli.run([*score, f"--output={tmp_path / 'apart.jsonl'}", "--batch_size=1"]) == 0
    together, apart = jsonl(tmp_path / "together.jsonl"), jsonl(tmp_path / "apart.jsonl")
    np.testing.assert_allclose([r["score"] for r in together], [r["score"] for r in apart], rtol=1e-4)
    tokens = sum(r["tokens"] for r in together)
    assert tokens == evaluated["three_pairs"]["tokens"]
    assert -sum(r["score"] for r in together) / tokens == pytest.approx(evaluated["three_pairs"]["loss"], rel=1e-5)

    (tmp_path / "inputs.txt").write_text("Ba da <extra_id_0> ta.\nRe li.\n")
    infer = ["infer", f"--checkpoint={model}", f"--input={tmp_path / 'inputs.txt'}"]
    assert cli.run([*infer, f"--output={tmp_path / 'completed.jsonl'}", "--max_decode_length=5"]) == 0
    completed = jsonl(tmp_path / "completed.jsonl")
    assert [r["inputs"] for r in completed] == ["Ba da <extra_id_0> ta.", "Re li."]
    assert all(r["score"] < 0 for r in completed)


def test_adapters_are_put_into_a_checkpoint_and_trained_alone(trained, train_flags, tmp_path, capsys):
    flags = train_flags(tmp_path / "m", TRAIN_STEPS=16, EVAL_PERIOD=0, INITIAL_CHECKPOINT_PATH=trained, ADAPTER_DIM=8)
    flags = [f.replace("runs/pretrain.gin", "runs/finetune_adapters.gin") for f in flags]
    assert cli.run(flags) == 0
    assert "its adapters are new" in capsys.readouterr().err

    before, after = parameters(trained, 12), parameters(tmp_path / "m", 16)
    new = after.keys() - before.keys()
    assert new and all("adapter" in path for path in new)
    for path, values in before.items():
        same = np.asarray(values).tobytes() == np.asarray(after[path]).tobytes()
        assert same != any("norm" in part for part in path), path
    # And it goes on from its own checkpoint, adapters and all.
    again = [f.replace("TRAIN_STEPS=16", "TRAIN_STEPS=18") for f in flags]
    assert cli.run(again) == 0
    assert "its adapters are new" not in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / "m")[-1] == 18


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"LOSS_ON_INPUTS": True}, "LOSS_ON_INPUTS is True. A model of the structure encoder_decoder does not predict"),
        (
            {"architecture.Architecture.structure": "language_model"},
            "Architecture.encoder_layers is 2. It must be 0, for a language_model has no encoder",
        ),
        ({"TRAINABLE": "['adapters']"}, "TRAINABLE has 'adapters'. It is found in none of the 29 parameters, such as"),
    ],
)
def test_architectures_that_cannot_be_trained(changed, text, train_flags, tmp_path, capsys):
    assert cli.run(train_flags(tmp_path / "m", **changed)) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
