"""eval, infer and score of one trained model: against each other, and against metrics worked out by hand."""

import errno
import json
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import cli, model_dir, program, task_metrics
from t5x_lite.data import batches, examples
from t5x_lite.task import open_task
from t5x_lite.tasks import codec
from t5x_lite.train import evaluation, results
from t5x_lite.verbs import evaluate

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


def mean_certainty(targets, predictions, aux_values):
    return {"mean_certainty": np.mean(aux_values["scores"])}


def kinds(targets, predictions):
    """One value of each kind that a metric function may return."""
    metrics = seqio.metrics
    return {
        "scalar": metrics.Scalar(np.float32(2.5)), "note": metrics.Text("fine"), "page": metrics.Text("a\\nb"),
        "histogram": metrics.Histogram(np.arange(3)), "undefined": float("nan"), "accuracy": 51,
    }


def failing(targets, predictions):
    raise KeyError("no such label")


def longer(split, shuffle_files=False, seed=None):
    texts = [" ".join(["di gu"] * count) for count in range(1, 24)]
    return tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": texts})


def register(name, metric_fns, function=examples):
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(function, splits=["train", "validation"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={name: seqio.Feature(vocabulary.chosen()) for name in ("inputs", "targets")},
        metric_fns=metric_fns,
    )


register("reversed_texts", [exact_match, mean_length, mean_score, mean_certainty, kinds])
register("reversed_wrongly", [failing])
register("longer_texts", [], longer)
seqio.MixtureRegistry.add("reversed_and_text", ["reversed_texts", "text_span_corruption"], default_rate=1.0)
seqio.MixtureRegistry.add("reversed_both", ["reversed_texts", "reversed_wrongly"], default_rate=1.0)
'''


TEXTS = [f"{a}{b} di gu" for a in "bdfgklmn" for b in "aeiou"][:23]


@pytest.fixture(scope="module")
def module(write_module):
    write_module("reversed_tasks", MODULE)
    return "--module=reversed_tasks"


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


def failed(capfd, status, *argv):
    assert cli.run([str(word) for word in argv]) == status
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return error[error.index("t5x_lite: error: ") :]


def refused(capfd, *argv):
    return failed(capfd, 2, *argv)


@pytest.fixture(scope="module")
def evaluated(trained, module, tmp_path_factory):
    """What eval leaves for the module's mixture: results and predictions."""
    output = tmp_path_factory.mktemp("evaluated") / "made" / "anew"
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


def test_metrics_of_every_kind_are_written_or_named(evaluated, trained, module, tmp_path, capfd):
    results, _ = evaluated
    result = results["reversed_texts"]
    assert {name: result[name] for name in ("scalar", "note", "page", "undefined", "task_accuracy")} == {
        "scalar": 2.5, "note": "fine", "page": "a\nb", "undefined": None, "task_accuracy": 51.0
    }  # fmt: skip
    # The share of target tokens keeps its name.
    assert 0 <= result["accuracy"] <= 1 and "histogram" not in result

    flags = ["eval", f"--checkpoint={trained}@8", "--mixture_or_task=reversed_texts", module, "--num_examples=1"]
    assert cli.run([*flags, f"--output_dir={tmp_path}"]) == 0
    shown, said = capfd.readouterr()
    assert "reversed_texts: the metric histogram is Histogram, neither a number nor a text: left out" in said
    assert "scalar 2.5000  note fine" in shown and "page" not in shown and shown.count("\n") == 1


def test_auxiliary_values_are_the_scores_of_the_completions(evaluated, trained, tmp_path, capfd):
    results, _ = evaluated
    (tmp_path / "inputs.txt").write_text("\n".join(TEXTS))
    completed = run(capfd, "infer", f"--checkpoint={trained}@8", f"--input={tmp_path}/inputs.txt").splitlines()
    scores = [json.loads(line)["score"] for line in completed]
    assert results["reversed_texts"]["mean_certainty"] == pytest.approx(np.mean(scores), rel=1e-4)


def test_outputs_are_decoded_as_asked_for(trained, module, tmp_path, capfd):
    flags = ["eval", f"--checkpoint={trained}@8", "--mixture_or_task=reversed_texts", module, "--num_examples=3"]
    flags += [f"--output_dir={tmp_path}", "--max_decode_length=3"]
    run(capfd, *flags, "--decode=beam", "--beam_size=2")
    run(capfd, *flags)
    beam, greedy = lines(tmp_path / "results.jsonl")
    assert beam["decode"] == "beam beam_size=2 length_penalty=0.6 max_decode_length=3"
    assert greedy["decode"] == "greedy max_decode_length=3" and greedy["num_examples"] == 3
    assert beam["mean_score"] == pytest.approx(greedy["mean_score"]) and beam["loss"] == greedy["loss"]
    names = {path.name for path in tmp_path.glob("8-*")}
    assert names == {f"8-reversed_texts-validation-{line['decode'].replace(' ', '-')}.jsonl" for line in (beam, greedy)}


def test_the_table_has_a_column_for_each_task_and_their_mean(evaluated):
    results, output = evaluated
    head, metric, row = (output / "table.txt").read_text().splitlines()
    assert head.split() == ["step", "reversed_texts", "text_span_corruption", "mean"]
    assert metric.split() == ["exact_match", "loss"]
    exact, loss = results["reversed_texts"]["exact_match"], results["text_span_corruption"]["loss"]
    assert row.split() == ["8", f"{exact:.3f}", f"{loss:.3f}", f"{exact:.3f}"]


def test_results_are_tensorboard_scalars_at_the_step_of_the_checkpoint(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results, output = evaluated
    events = EventAccumulator(str(output)).Reload()
    for task, names in (("reversed_texts", ("loss", "exact_match", "scalar")), ("text_span_corruption", ("accuracy",))):
        for name in names:
            ((step, value),) = [(e.step, e.value) for e in events.Scalars(f"eval/{task}/{name}")]
            assert step == 8 and value == pytest.approx(results[task][name], rel=1e-6)
    assert not [tag for tag in events.Tags()["scalars"] if "note" in tag or "page" in tag]


def test_a_metric_function_that_fails_loses_nothing_of_what_is_known(evaluated, trained, module, tmp_path, capfd):
    flags = ["eval", f"--checkpoint={trained}@8", "--mixture_or_task=reversed_both", module]
    error = refused(capfd, *flags, f"--output_dir={tmp_path}")
    assert re.search(r"a metric function of reversed_wrongly failed\. KeyError: 'no such label'", error), error
    whole, part = lines(tmp_path / "results.jsonl")
    assert whole == evaluated[0]["reversed_texts"]
    kept = (*results.SETTING, "step", "committed", "loss", "accuracy", "tokens")
    assert part == {k: whole[k] for k in kept} | {"task": "reversed_wrongly", "incomplete": True}


def test_training_computes_the_metrics_too(module, train_flags, tmp_path, capfd):
    flags = train_flags(
        tmp_path / "m", MIXTURE_OR_TASK_NAME="reversed_texts", MIXTURE_OR_TASK_MODULE="reversed_tasks",
        TRAIN_STEPS=4, EVAL_PERIOD=2, EVAL_BATCHES=10,
    )  # fmt: skip
    assert cli.run(flags) == 0
    capfd.readouterr()
    during = lines(tmp_path / "m/eval/results.jsonl")
    assert [line["step"] for line in during] == [2, 4]
    assert cli.run(["eval", f"--checkpoint={tmp_path}/m", f"--output_dir={tmp_path}/after"]) == 0
    (after,) = lines(tmp_path / "after/results.jsonl")
    assert during[-1].keys() | {"committed", *results.SETTING} == after.keys()
    for name in ("mean_length", "mean_score", "mean_certainty", "scalar", "task_accuracy", "tokens", "loss"):
        assert during[-1][name] == pytest.approx(after[name], rel=1e-4), name
    assert (tmp_path / "m/eval/4-reversed_texts-validation.jsonl").read_text()


@pytest.fixture
def measured(trained, module):
    """A model under its mesh, and the metrics of reversed_texts over it, as training has them."""
    macros = ["MIXTURE_OR_TASK_NAME=reversed_texts", "MIXTURE_OR_TASK_MODULE=reversed_tasks"]
    with model_dir.restored(f"{trained}@8", (), macros) as model:
        task, explain = open_task(model.job)
        found = task_metrics.by_task(task, "validation", model.job, (model.program,), 8, explain, 10)
        yield model, found["reversed_texts"]


def test_metrics_are_those_of_the_parameters_given(measured, text, tmp_path):
    """A model of zeros gives each of its 512 ids the same probability, at every step of decoding."""
    model, metrics = measured
    zeros = jax.tree.map(jnp.zeros_like, model.params)
    first, other, again = (metrics((p,), step, tmp_path) for step, p in enumerate((model.params, zeros, model.params)))
    assert again == pytest.approx(first, nan_ok=True)
    lengths = [len(text.encode(" ".join(t.split()[::-1]))) + 1 for t in TEXTS[:10]]
    assert other["mean_score"] == pytest.approx(-np.log(512) * np.mean(lengths), rel=1e-4)
    assert other["mean_certainty"] == pytest.approx(-np.log(512) * 16, rel=1e-4)
    assert other["mean_length"] == 0  # padding is the first of the ids that are equally probable
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{n}-reversed_texts-validation.jsonl" for n in "012"]


def test_metrics_are_those_of_the_evaluator_of_seqio(measured):
    import seqio

    model, metrics = measured
    kinds = seqio.metrics.ModelOutputType
    outputs = metrics._outputs((model.params,), lambda: False)
    evaluator = seqio.Evaluator(
        "reversed_texts", seqio.EncDecFeatureConverter(pack=False), sequence_length=dict(model.job.feature_lengths),
        num_examples=10,
    )  # fmt: skip
    ids, aux = outputs[kinds.PREDICTION_WITH_AUX]
    expected, _ = evaluator.evaluate(
        compute_metrics=True,
        predict_fn=lambda dataset: list(enumerate(ids.tolist())),
        predict_with_aux_fn=lambda dataset: (list(enumerate(ids.tolist())), {"scores": aux["scores"].tolist()}),
        score_fn=lambda dataset: list(enumerate(outputs[kinds.SCORE].tolist())),
    )
    expected, others = task_metrics.plain(expected.result()["reversed_texts"])
    assert task_metrics.plain(metrics._values(outputs)) == (pytest.approx(expected, nan_ok=True), others)


def test_an_evaluation_that_is_asked_to_stop_writes_nothing(measured, tmp_path):
    model, metrics = measured
    answers = iter((False, True))
    with pytest.raises(task_metrics.Stopped):
        metrics((model.params,), 8, tmp_path, lambda: next(answers))
    assert list(tmp_path.iterdir()) == []


def test_a_model_cut_over_its_axes_gives_the_same_metrics(evaluated, trained, module, tmp_path):
    flags = ["eval", f"--checkpoint={trained}@8", "--mixture_or_task=reversed_texts", module]
    assert cli.run([*flags, f"--output_dir={tmp_path}", "--gin_file=partition/2d.gin"]) == 0
    (result,) = lines(tmp_path / "results.jsonl")
    expected = evaluated[0]["reversed_texts"]
    assert result.keys() == expected.keys()
    for name in ("loss", "exact_match", "mean_length", "mean_score", "mean_certainty"):
        assert result[name] == pytest.approx(expected[name], rel=1e-3), name


def test_targets_that_were_cut_are_counted(evaluated, trained, module, text, tmp_path, capfd):
    """eval cuts to TASK_FEATURE_LENGTHS, score takes targets whole: the line says why they differ."""
    targets = [[*text.encode(" ".join(t.split()[::-1])), text.eos_id] for t in TEXTS]
    length = max(map(len, targets)) - 1
    cut = sum(len(t) > length for t in targets)
    flags = ["eval", f"--checkpoint={trained}@8", "--mixture_or_task=reversed_texts", module, "--num_examples=23"]
    short = f"--gin.TASK_FEATURE_LENGTHS={ {'inputs': 40, 'targets': length} }"
    assert cli.run([*flags, f"--output_dir={tmp_path}", short]) == 0
    assert f"{cut} of 23 targets of reversed_texts were cut to the {length} tokens" in capfd.readouterr().err
    (result,) = lines(tmp_path / "results.jsonl")
    assert 0 < cut and result["tokens"] == evaluated[0]["reversed_texts"]["tokens"] - cut
    assert cli.run([*flags, f"--output_dir={tmp_path}"]) == 0
    assert "were cut" not in capfd.readouterr().err


def test_only_full_targets_that_should_have_an_end_and_have_none_were_cut():
    # Cut, whole and full, whole and short, cut, empty.
    targets = [[7, 8, 9, 6], [7, 8, 9, 1], [7, 1], [7, 8, 9, 6], []]
    for eos, cut in ((1, 2), (None, 0)):
        tally = Counter()
        pairs = evaluate._tallied(({"inputs": [3], "targets": t} for t in targets), eos, 4, tally)
        assert list(pairs) == [([3], t) for t in targets]
        assert (tally["targets"], tally["cut"]) == (5, cut)


def test_rows_are_as_long_as_their_examples_and_give_the_numbers_of_whole_rows(trained, module, tmp_path, monkeypatch):
    lengths, shapes, of_batches = {"inputs": 200, "targets": 100}, [], evaluation.teacher_forced

    def watched(sums_of, params, batches):
        batches = list(batches)
        shapes.extend(
            (batch["encoder_input_tokens"].shape[1], batch["decoder_input_tokens"].shape[1]) for batch in batches
        )
        return of_batches(sums_of, params, batches)

    monkeypatch.setattr(evaluation, "teacher_forced", watched)
    about = ["--mixture_or_task=longer_texts", module, f"--gin.TASK_FEATURE_LENGTHS={lengths}", "--batch_size=8"]
    assert cli.run(["eval", f"--checkpoint={trained}@8", *about, f"--output_dir={tmp_path}"]) == 0
    (found,) = lines(tmp_path / "results.jsonl")
    macros = ["MIXTURE_OR_TASK_NAME=longer_texts", "MIXTURE_OR_TASK_MODULE=reversed_tasks"]
    with model_dir.restored(f"{trained}@8", (), [*macros, f"TASK_FEATURE_LENGTHS={lengths}"]) as model:
        task, explain = open_task(model.job)
        [(_, stream)] = examples.evaluation_streams(task, "validation", lengths, False, 0, False, explain)
        whole = batches.eval_batches(stream, lengths, 8, False, model.program.convert, None)
        placed = ({name: model.place(array) for name, array in batch.items()} for batch in whole)
        expected = of_batches(program.eval_step(model.program), model.params, placed)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert len(shapes) == 3 and len(set(shapes)) > 1 and max(shapes) < (200, 100)


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


def test_wrong_requests_are_refused(trained, module, tmp_path, capfd):
    at = f"--checkpoint={trained}"
    cases = {
        ("eval", at, "--mixture_or_task=text_span"): r"text_span is unknown\..*Nearest: .*text_span_corruption",
        ("eval", at, module, "--mixture_or_task=reversed_text"): r"reversed_text is unknown\..*Nearest: reversed_texts",
        ("eval", at, "--split=test"): r"--split=test is in no task of text_span_corruption\. It has train, validation",
        ("eval", at, at): r"several --checkpoint are given without --output_dir\. .* Name a folder with --output_dir",
        ("eval", f"{at}@all", at, "--output_dir=x"): r"several --checkpoint are given with @all or --follow\.",
        ("eval", f"{at}@8", "--follow"): rf"@8 is given with --follow\. .* Write --checkpoint={trained}\.",
        ("eval", at, "--poll_seconds=3"): r"--poll_seconds=3 is given without --follow\.",
        ("eval", at, "--beam_size=3"): r"--beam_size is 3\. --decode=greedy does not use it\.",
        ("eval", at, "--beam_size=4"): r"--beam_size is 4\. --decode=greedy does not use it\.",
        ("eval", at, "--decode=beam", "--temperature=1"): r"--temperature is 1\.0\. --decode=beam does not use it\.",
        ("eval", at, "--decode=beam", "--seed=3"): r"--seed=3 is given\. --decode=beam draws nothing\.",
    }
    for argv, message in cases.items():
        error = refused(capfd, *argv)
        assert re.search(message, error), error
        assert "Traceback" not in error


@pytest.fixture
def no_parameters(monkeypatch):
    """Lets no checkpoint be read: what is refused is refused before that."""

    def restore_part(*_):
        raise AssertionError("the parameters were read first")

    monkeypatch.setattr("t5x_lite.train.checkpoint.restore_part", restore_part)


def test_places_that_cannot_be_written_are_refused_before_any_work(trained_copy, no_parameters, tmp_path, capfd):
    (tmp_path / "file").write_text("kept")
    (trained_copy / "eval").rename(trained_copy / "before")
    (trained_copy / "eval").touch()
    at, before = f"--checkpoint={trained_copy}", sorted(tmp_path.rglob("*"))
    cases = {
        ("eval", at, "--output_dir=/proc/x/y"): r"--output_dir=/proc/x/y cannot be written",
        ("eval", at, f"--output_dir={tmp_path}/file/x"): r"--output_dir=\S+file/x cannot be written",
        ("eval", at): r"--output_dir=\S+/eval cannot be written\. .*name another folder with --output_dir",
    }
    for argv, message in cases.items():
        error = refused(capfd, *argv)
        assert re.search(message, error, re.IGNORECASE), error
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "kept"


def test_a_disk_that_is_full_is_a_failure_of_the_run(trained, module, tmp_path, capfd, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate, "append_result", full)
    flags = ["eval", f"--checkpoint={trained}", "--mixture_or_task=reversed_wrongly", "--split=train", module]
    error = failed(capfd, 1, *flags, "--num_examples=1", f"--output_dir={tmp_path}")
    assert re.search(r"results.jsonl could not be written: No space .*It holds the results of the tasks before", error)


def test_values_that_are_neither_numbers_nor_texts_are_named():
    kept, others = task_metrics.plain({"ragged": [[1], [1, 2]], "by_class": {"a": 1.0}, "one": 1, "two": np.float32(2)})
    assert kept == {"one": 1.0, "two": 2.0} and others == {"ragged": "list", "by_class": "dict"}


def test_a_task_of_two_metrics_of_the_paper_has_their_mean_as_score():
    values = {"f1": 90.0, "accuracy": 80.0}
    assert task_metrics.scored("glue_mrpc_v002", values) == values | {"score": 85.0}
    assert task_metrics.scored("glue_mnli_v002", values) == task_metrics.scored("mine", values) == values


def test_averages_over_benchmarks_need_all_of_their_tasks():
    """Metrics that are called like parts of a line have a prefix there; WNLI and the diagnostic sets do not count."""
    from t5x_lite import task_metrics
    from t5x_lite.tasks.metrics.averages import GLUE

    common = {"loss": 1.0, "accuracy": 0.01, "tokens": 5}
    lines = {task: dict(common) for metrics in GLUE.values() for task, _ in metrics}
    for number, metrics in enumerate(GLUE.values()):
        for task, name in metrics:
            lines[task]["task_accuracy" if name == "accuracy" else name] = 10.0 * number
    assert task_metrics.averages(lines) == {"glue_average": 35.0}
    lines["glue_wnli_v002"] = {**common, "task_accuracy": 1.0}
    assert task_metrics.averages(lines) == {"glue_average": 35.0}
    del lines["glue_rte_v002"]["task_accuracy"]
    assert task_metrics.averages(lines) == {}
