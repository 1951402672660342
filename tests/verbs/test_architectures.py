"""Every architecture by the same commands: train, resume, evaluate, complete, score; adapters on an old checkpoint."""

import json

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


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_commands_serve_every_architecture(name, train_flags, tmp_path, capsys):
    changed = {f"architecture.Architecture.{field}": value for field, value in ARCHITECTURES[name].items()}
    model = tmp_path / "model"
    flags = train_flags(model, TRAIN_STEPS=8, SAVE_PERIOD=4, EVAL_PERIOD=8, **changed)
    assert cli.run(flags) == 0
    lines = jsonl(model / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    (trained,) = jsonl(model / "eval/results.jsonl")
    capsys.readouterr()

    # Another way to the same numbers: the eval verb of unpacked rows; score of the written targets.
    assert cli.run(["eval", f"--checkpoint={model}", f"--output_dir={tmp_path / 'eval'}"]) == 0
    (line,) = jsonl(tmp_path / "eval/results.jsonl")
    assert line["loss"] == pytest.approx(trained["loss"], rel=0.2)
    pairs = [{"inputs": "Ba da <extra_id_0> ta.", "targets": "<extra_id_0> ga"}, {"inputs": "Re.", "targets": "li lo"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    score = ["score", f"--checkpoint={model}", f"--input={tmp_path / 'pairs.jsonl'}"]
    assert cli.run([*score, f"--output={tmp_path / 'together.jsonl'}"]) == 0
    assert cli.run([*score, f"--output={tmp_path / 'apart.jsonl'}", "--batch_size=1"]) == 0
    together, apart = jsonl(tmp_path / "together.jsonl"), jsonl(tmp_path / "apart.jsonl")
    np.testing.assert_allclose([r["score"] for r in together], [r["score"] for r in apart], rtol=1e-4)

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

    def parameters(directory, step):
        with model_dir.restored(f"{directory}@{step}", (), ()) as model:
            return flatten_dict(jax.device_get(model.params))

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
