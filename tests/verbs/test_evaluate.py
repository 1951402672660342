"""eval, infer and score of one trained model: against each other, and against metrics worked out by hand."""

import json
import re

import numpy as np
import pytest

from t5x_lite import cli
from t5x_lite.tasks import codec

MODULE = '''
import functools

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite.tasks import vocabulary


def examples(split, shuffle_files=False, seed=None):
    """23 pairs of texts, more than a batch and no multiple of one."""
    count = {"train": 40, "validation": 23}[split]
    texts = [f"{a}{b} di gu" for a in "bdfgklmn" for b in "aeiou"][:count]
    reversed_texts = [" ".join(text.split()[::-1]) for text in texts]
    return tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": reversed_texts})


def exact_match(targets, predictions):
    return {"exact_match": 100 * np.mean([t == p for t, p in zip(targets, predictions, strict=True)])}


def mean_length(targets, predictions):
    return {"mean_length": np.mean([len(p) for p in predictions])}


def mean_score(targets, scores):
    return {"mean_score": np.mean(scores)}


seqio.TaskRegistry.add(
    "reversed_texts",
    source=seqio.FunctionDataSource(examples, splits=["train", "validation"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={name: seqio.Feature(vocabulary.chosen()) for name in ("inputs", "targets")},
    metric_fns=[exact_match, mean_length, mean_score],
)
seqio.MixtureRegistry.add("reversed_and_text", ["reversed_texts", "text_span_corruption"], default_rate=1.0)
'''


TEXTS = [f"{a}{b} di gu" for a in "bdfgklmn" for b in "aeiou"][:23]


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "reversed_tasks.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield "--module=reversed_tasks"


@pytest.fixture(scope="module")
def text(corpus):
    return codec.load(str(corpus / "vocabulary.model"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(capfd, *argv):
    status = cli.run([str(word) for word in argv])
    captured = capfd.readouterr()
    assert status == 0, captured.err
    return captured.out


def refused(capfd, *argv):
    assert cli.run([str(word) for word in argv]) == 2
    error = capfd.readouterr().err
    return error[error.index("t5x_lite: error: ") :]


@pytest.fixture(scope="module")
def evaluated(trained, module, tmp_path_factory):
    """What eval leaves for the module's mixture: results and predictions."""
    output = tmp_path_factory.mktemp("evaluated")
    flags = ["eval", f"--checkpoint={trained}@8", "--mixture_or_task=reversed_and_text", module]
    assert cli.run([*flags, f"--output_dir={output}"]) == 0
    return {line["task"]: line for line in lines(output / "results.jsonl")}, output


def test_metrics_are_those_of_the_predictions_file(evaluated):
    results, output = evaluated
    assert set(results) == {"reversed_texts", "text_span_corruption"}
    result = results["reversed_texts"]
    predictions = lines(output / "8-reversed_texts-validation.jsonl")
    assert [line["inputs"] for line in predictions] == TEXTS
    assert result["step"] == 8 and result["split"] == "validation"
    right = [line["prediction"] == line["targets"] for line in predictions]
    assert result["exact_match"] == pytest.approx(100 * np.mean(right))
    assert result["mean_length"] == pytest.approx(np.mean([len(line["prediction"]) for line in predictions]))
    assert result["mean_score"] == pytest.approx(np.mean([line["score"] for line in predictions]), rel=1e-4)
    assert not {"exact_match", "mean_score"} & results["text_span_corruption"].keys()


def test_score_equals_the_loss_of_eval(evaluated, trained, tmp_path, capfd):
    results, output = evaluated
    pairs = [{"inputs": text, "targets": " ".join(text.split()[::-1])} for text in TEXTS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    files = f"--input={tmp_path}/pairs.jsonl", f"--output={tmp_path}/out.jsonl"
    run(capfd, "score", f"--checkpoint={trained}@8", *files)
    scored = lines(tmp_path / "out.jsonl")
    assert [{k: line[k] for k in ("inputs", "targets")} for line in scored] == pairs
    result = results["reversed_texts"]
    assert sum(line["tokens"] for line in scored) == result["tokens"]
    assert -sum(line["score"] for line in scored) / result["tokens"] == pytest.approx(result["loss"], rel=1e-4)
    expected = [line["score"] for line in lines(output / "8-reversed_texts-validation.jsonl")]
    np.testing.assert_allclose([line["score"] for line in scored], expected, rtol=1e-4)


def test_eval_of_the_end_repeats_the_validation_of_training(trained, tmp_path, capfd):
    """Unpacked and whole, where training looked at two packed batches: alike, not equal; and the default task."""
    shown = run(capfd, "eval", f"--checkpoint={trained}", f"--output_dir={tmp_path}")
    (result,) = lines(tmp_path / "results.jsonl")
    assert (result["step"], result["task"]) == (12, "text_span_corruption")
    during = [json.loads(line) for line in (trained / "eval/results.jsonl").read_text().splitlines()][-1]
    assert result["loss"] == pytest.approx(during["loss"], abs=0.3)
    assert result["tokens"] > during["tokens"]
    assert f"text_span_corruption  step 12  loss {result['loss']:.4f}" in shown
    few = run(capfd, "eval", f"--checkpoint={trained}", f"--output_dir={tmp_path}", "--num_examples=3")
    assert "tokens 3" in few or lines(tmp_path / "results.jsonl")[-1]["tokens"] < result["tokens"]


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_completions_come_in_the_order_of_the_inputs(kind, trained, text, tmp_path, capfd):
    texts = [f"{'ka lo ' * (19 - i)}<extra_id_0> {i}" for i in range(19)]
    path = tmp_path / f"inputs.{kind}"
    path.write_text("".join((t if kind == "txt" else json.dumps({"inputs": t, "more": 1})) + "\n" for t in texts))
    flags = ["infer", f"--checkpoint={trained}", f"--input={path}", "--max_decode_length=6"]
    run(capfd, *flags, f"--output={tmp_path}/out.jsonl", "--batch_size=8")
    found = lines(tmp_path / "out.jsonl")
    assert [line["inputs"] for line in found] == texts
    assert all(line["score"] < 0 and len(text.encode(line["prediction"])) <= 7 for line in found)
    # In batches of another size, and one by one.
    printed = [json.loads(line) for line in run(capfd, *flags, "--batch_size=16").splitlines()]
    assert [line["prediction"] for line in printed] == [line["prediction"] for line in found]
    np.testing.assert_allclose([x["score"] for x in printed], [x["score"] for x in found], rtol=1e-4)
    alone = run(capfd, "infer", f"--checkpoint={trained}", f"--text={texts[3]}", "--max_decode_length=6")
    assert alone == found[3]["prediction"] + "\n"


def test_wrong_requests_are_refused(trained, module, tmp_path, capfd):
    (tmp_path / "bad.jsonl").write_text('{"inputs": "a", "targets": "b"}\n{"inputs": 7}\n')
    (tmp_path / "empty.jsonl").write_text("")
    at = f"--checkpoint={trained}"
    cases = {
        ("infer", at, f"--input={tmp_path}/gone.txt"): r"--input=\S*gone.txt cannot be read",
        ("infer", at, f"--input={tmp_path}/bad.jsonl"): r"line 2 of \S*bad.jsonl is .*an object with text in inputs",
        ("score", at, f"--input={tmp_path}/bad.jsonl"): r"line 2 of .*text in inputs and targets",
        ("score", at, f"--input={tmp_path}/empty.jsonl"): r"--input=\S*empty.jsonl is empty",
        ("infer", f"{at}@5", "--text=a"): r"--checkpoint=\S+@5 names no checkpoint\. \S+ has the steps 4, 8, 12",
        ("infer", f"--checkpoint={tmp_path}", "--text=a"): "is no model directory",
        ("infer", f"--checkpoint={tmp_path}/gone", "--text=a"): "is no directory",
        ("eval", at, "--mixture_or_task=text_span"): r"text_span is unknown\..*Nearest: text_span_corruption",
        ("eval", at, module, "--mixture_or_task=reversed_text"): r"reversed_text is unknown\..*Nearest: reversed_texts",
        ("eval", at, "--split=test"): r"--split=test is in no task of text_span_corruption\. It has train, validation",
        ("infer", at, "--text=a", "--gin.architecture.Architecture.mlp_dim=96"): r"mlp\S* has shape .*needs",
    }
    for argv, message in cases.items():
        error = refused(capfd, *argv)
        assert re.search(message, error), error
        assert "Traceback" not in error
