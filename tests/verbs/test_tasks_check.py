"""tasks check: what is said of every mistake that a task can have, and of modules that cannot be checked."""

import contextlib
import io
import re

import pytest

from t5x_lite import cli
from tests.verbs.conftest import run

MODULE = '''
import functools, itertools, random

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite.tasks import vocabulary

EOS = seqio.preprocessors.append_eos_after_trim
TOKENIZE = seqio.preprocessors.tokenize
COUNT = {"train": 60, "validation": 6, "nothing": 0}


def texts(split, shuffle_files=False, seed=None):
    """k ka ka ... -> a number, in words of one letter."""
    inputs = [f"{k} " + "ka " * (k % 7) for k in range(COUNT[split])]
    targets = [f"n {k}" for k in range(COUNT[split])]
    return tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": targets})


def source(function=texts, splits=("train", "validation")):
    return seqio.FunctionDataSource(function, splits=splits)


def exact(targets, predictions):
    return {"exact": 100 * np.mean([t == p for t, p in zip(targets, predictions)])}


def register(
    name, preprocessors=(TOKENIZE, EOS), source=source(), metrics=(exact,), post=None, features=None, **changed
):
    features = features or {k: seqio.Feature(vocabulary.chosen(), add_eos=True) for k in ("inputs", "targets")}
    seqio.TaskRegistry.add(name, source=source, preprocessors=list(preprocessors), output_features=features | changed,
                           metric_fns=list(metrics), postprocess_fn=post)


def mapped(function):
    def preprocessor(dataset):
        return dataset.map(function)
    preprocessor.__name__ = function.__name__
    return preprocessor


register("fine")
register("cacheable", [TOKENIZE, seqio.CacheDatasetPlaceholder(required=True), EOS])

# Features
one = seqio.Feature(vocabulary.chosen(), add_eos=True)
register("no_targets_feature", features={"inputs": one})
register("no_eos_wanted", targets=seqio.Feature(vocabulary.chosen(), add_eos=False))
register("no_eos_in_inputs", inputs=seqio.Feature(vocabulary.chosen(), add_eos=False))
register("float_feature", inputs=seqio.Feature(vocabulary.chosen(), add_eos=True, dtype=tf.float32))
register("large_vocabulary", inputs=seqio.Feature(seqio.PassThroughVocabulary(900, eos_id=1), add_eos=True))

# Sources
register("no_train", source=source(splits=["validation"]))
register("no_validation", source=source(splits=["train"]))
register("no_records", source=source(lambda split, shuffle_files, seed=None: texts("nothing")))
register("no_seed", source=source(lambda split, shuffle_files: texts(split)))
register("no_files", source=seqio.TextLineDataSource({"train": "gone*.tsv", "validation": "gone*.tsv"}))
register("not_there", source=seqio.TfdsDataSource("no_such_data:1.0.0", splits=["train", "validation"]))

def broken_source(split, shuffle_files, seed=None):
    raise OSError("the disk is away")
register("broken_source", source=source(broken_source))

# Preprocessors
def shout(example):
    return {"inputs": example["inputs"], "shouted": example["targets"]}
register("not_made", [mapped(shout), TOKENIZE, EOS])
register("not_tokenized", [])
def ranked(example):
    return {name: ids[None] for name, ids in example.items()}
register("of_wrong_rank", [functools.partial(TOKENIZE, copy_pretokenized=False), mapped(ranked)])
def misspelt(example):
    return {"inputs": example["input"], "targets": example["targets"]}
register("misspelt_field", [mapped(misspelt), TOKENIZE, EOS])
def choosy(example):
    def label(text):
        if text == b"n 4":
            raise KeyError("no label 4")
        return text
    targets = tf.numpy_function(label, [example["targets"]], tf.string, stateful=False)
    return {"inputs": example["inputs"], "targets": tf.ensure_shape(targets, [])}
register("fails_on_a_record", [mapped(choosy), TOKENIZE, EOS])
register("leaves_all_out", [lambda dataset: dataset.filter(lambda e: False), TOKENIZE, EOS])

# Tokens
def outside(example):
    return {"inputs": tf.constant([5, 700, 1]), "targets": example["targets"]}
register("outside_the_vocabulary", [TOKENIZE, EOS, mapped(outside)])
register("no_eos", [TOKENIZE])
def emptied(example):
    return {"inputs": example["inputs"], "targets": tf.where(example["targets"] == "n 3", "", example["targets"])}
register("empty_targets", [mapped(emptied), TOKENIZE, EOS])

def padded(example):
    return {**example, "targets": tf.concat([[0], example["targets"]], 0)}
register("padding_inside", [TOKENIZE, mapped(padded), EOS])

# Streams
def lucky(example):
    return {"inputs": tf.strings.as_string(tf.random.uniform([])), "targets": example["targets"]}
register("random", [mapped(lucky), TOKENIZE, EOS])
counter = itertools.count()
def generated(split, shuffle_files, seed=None):
    spec = {name: tf.TensorSpec([], tf.string) for name in ("inputs", "targets")}
    return tf.data.Dataset.from_generator(lambda: ({"inputs": f"a {k}", "targets": f"b {k}"} for k in range(60)),
                                          output_signature=spec)
register("generated", source=source(generated))

# Metrics
def failing(targets, predictions):
    raise ZeroDivisionError("no division by zero")
register("failing_metric", metrics=[failing])
def listing(targets, predictions):
    return {"all": [t == p for t, p in zip(targets, predictions)]}
register("listing_metric", metrics=[listing])
def undefined(targets, predictions):
    return {"undefined": float("nan")}
register("undefined_metric", metrics=[undefined])
def wrong_arguments(labels, outputs):
    return {}
register("wrong_arguments", metrics=[wrong_arguments])
def number(text, example=None, is_target=False):
    return int(text.split()[1])
register("failing_postprocessor", post=number)
def half(text, example=None, is_target=False):
    return text if is_target else text.upper()
register("uneven_postprocessor", post=half)
def middling(targets, predictions):
    right = np.mean([t == p for t, p in zip(targets, predictions)])
    return {"middling": 0.5 if right == 1 else 1.0 if predictions[0] else 0.0}
register("middling_metric", metrics=[middling])
def scored(targets, scores):
    return {"score": float(np.mean(scores))}
register("scored", metrics=[scored])

# Mixtures
add = seqio.MixtureRegistry.add
add("mixed", [("fine", 2.0), ("scored", 1.0)])
add("only_evaluated", [("fine", 2.0), ("scored", 0.0)])
add("all_rates_zero", [("fine", 0.0), ("scored", 0.0)])
add("negative_rate", [("fine", 2.0), ("scored", -1.0)])
def uncertain(task):
    raise LookupError("rate unknown")
add("uncertain_rate", [("fine", uncertain)])
add("with_a_broken_one", ["fine", "no_eos"], default_rate=1.0)
other = {k: seqio.Feature(seqio.ByteVocabulary(3), add_eos=True) for k in ("inputs", "targets")}
register("other_vocabulary", features=other)
add("of_two_vocabularies", ["fine", "other_vocabulary"], default_rate=1.0)
'''

# Task -> what is said of it, as regular expressions; of tasks that are not here no error is.
FOUND = {
    "no_targets_feature": r"error: there is no feature targets\. .*this task has inputs\. Name it in output_features\.",
    "no_eos_wanted": r"error: the feature targets is made with add_eos=False\. .*learns to stop\. Use .*add_eos=True",
    "no_eos_in_inputs": r"warning: the feature inputs is made with add_eos=False\.",
    "float_feature": r"error: the feature inputs is float32 of rank 1\. A model reads a list of token ids\.",
    "large_vocabulary": r"error: the vocabulary of inputs has 900 ids, the model's table 384 rows\. .*vocab_size",
    "no_train": r"error: there is no split train\. It is there to train on; there is validation\. Add one\.",
    "no_validation": r"warning: there is no split validation\.",
    "no_records": r"error: the split train has no examples\. Its source gives no record\.",
    "no_seed": r"error: the function of the source takes no seed\. .*seed=None",
    "no_files": r"error: the split train cannot be read\. ValueError: No file is found.*: gone\*\.tsv",
    "not_there": r"error: The data of not_there, TFDS no_such_data:1\.0\.0, is not there\. .*DATA_DIR",
    "broken_source": r"error: the split train cannot be read\. OSError: the disk is away\. Correct the source",
    "not_made": r"error: the preprocessors give no targets\. .*rename what is there to targets with .*rekey",
    "not_tokenized": r"error: the preprocessors give inputs of a wrong type\. Got string, expected int32\..*tokenize",
    "of_wrong_rank": r"error: the preprocessors give inputs of a wrong rank\. Got 2, expected 1\.",
    "misspelt_field": r"error: the preprocessor misspelt fails\. KeyError: 'input'\. Correct it\.",
    "fails_on_a_record": r'error: the preprocessor choosy fails on the record .*"n 4".*\. KeyError: .no label 4.*\.',
    "leaves_all_out": r"error: 50 records of the split train give no example\. .*leave all of them out\.",
    "outside_the_vocabulary": r"error: the inputs of the split train have the token 700\. .*has the ids 0 to",
    "no_eos": r"error: 50 of 50 inputs of the split train do not end with the end token\. .*append_eos_after_trim last",
    "empty_targets": r'error: 1 of 50 targets of the split train are empty\. .*inputs "3 ka ka ka.*filter',
    "padding_inside": r"warning: 50 of 50 targets of the split train hold the padding id 0\. .*learned like a word",
    "random": r"error: two passes with one seed give other examples\. .*stateless",
    "generated": r"error: (the training split cannot be streamed and saved|a pass that goes on from a saved position)",
    "failing_metric": r"error: the metric failing fails on predictions that equal the targets\. ZeroDivisionError: ",
    "listing_metric": r"error: the metric all of listing is of type list\. It is no number\. Return a float\.",
    "undefined_metric": r"warning: the metric undefined is NaN where predictions equal the targets\.",
    "wrong_arguments": r"error: a metric function has other arguments\. .*'targets', 'predictions'",
    "failing_postprocessor": r"error: the postprocessor number fails on ''\. IndexError: list index out of range\.",
    "uneven_postprocessor": r"warning: the metric exact is not best .* equal the targets\. It is 0 there",
    "middling_metric": r"warning: the metric middling is not best .* 0\.5 there, 0 for empty predictions and 1 for the",
    "only_evaluated": r"warning: scored has the rate 0\. It is evaluated, and never trained on\.",
    "all_rates_zero": r"error: all its rates are 0\. Nothing would be drawn\.",
    "negative_rate": r"error: scored has the rate -1\.0\. Rates are positive\.",
    "uncertain_rate": r"error: its rates cannot be told\. LookupError: rate unknown\.",
    "of_two_vocabularies": r"error: its tasks do not go together\. ValueError: .*same vocabulary",
}

FINE = {
    "fine": r"ok; train 50 examples; validation 6 examples; inputs 3 to \d+ tokens; targets 4 to 5 tokens; exact 100",
    "cacheable": r"ok; train 50 examples",
    "scored": r"ok; train 50 .* tokens$",
    "mixed": r"ok; 2 tasks$",
    "with_a_broken_one": r"ok; 2 tasks; not tried, for the errors of no_eos$",
    "only_evaluated": r"1 warning; 2 tasks$",
    "no_eos": r"4 errors; train 50 examples; ",
}


@pytest.fixture(scope="module")
def checked(write_module):
    """Lines of `tasks check` by task, and what it ends with."""
    write_module("tasks_of_all_kinds", MODULE)
    out, err = io.StringIO(), io.StringIO()
    model = ["--gin_file=models/t5_1_1_tiny.gin", "--gin.architecture.Architecture.vocab_size=384"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(["tasks", "check", "tasks_of_all_kinds", *model, "--gin.VOCABULARY=bytes"])
    lines = {}
    for line in out.getvalue().splitlines():
        name, _, said = line.partition(": ")
        lines.setdefault(name, []).append(said)
    return status, lines, err.getvalue()


@pytest.mark.parametrize("name", FOUND)
def test_a_mistake_is_named_with_its_reason_and_remedy(name, checked):
    _, lines, _ = checked
    *findings, summary = lines[name]
    assert any(re.match(FOUND[name], finding) for finding in findings), findings
    kind = FOUND[name].partition(":")[0]
    assert {finding.partition(":")[0] for finding in findings} == {kind}
    assert kind in summary


@pytest.mark.parametrize("name", FINE)
def test_each_task_is_summed_up(name, checked):
    _, lines, _ = checked
    assert re.match(FINE[name], lines[name][-1]), lines[name]
    assert name in FOUND or len(lines[name]) == 1


def test_errors_end_with_status_2_and_one_line(checked):
    status, lines, err = checked
    count = sum(line.startswith("error: ") for said in lines.values() for line in said)
    assert status == 2
    assert err.endswith(
        f"t5x_lite: error: tasks_of_all_kinds has {count} errors. Each is named above. Correct them and check again.\n"
    )


def test_a_module_without_mistakes_ends_with_status_0(two_parts, capsys):
    command = ["tasks", "check", two_parts, "--gin.VOCABULARY=bytes", "--n=4"]
    task, mixture = run(capsys, *command).splitlines()
    assert task == (
        "two_parts: ok; train 4 examples; validation 4 examples; inputs 7 to 7 tokens; targets 7 to 7 tokens; "
        "accuracy 100"
    )
    assert mixture == "two_parts_alone: ok; 1 task"
    # Cut targets are a warning, with their share.
    cut = run(capsys, *command, "--gin.TASK_FEATURE_LENGTHS={'inputs': 7, 'targets': 5}")
    assert (
        "two_parts: warning: 100% of the targets of the split validation are cut to 5 tokens. "
        "Of 4 examples 4 have more, up to 7. Raise --gin.TASK_FEATURE_LENGTHS where that matters." in cut
    )


def test_modules_that_cannot_be_checked(write_module, two_parts, capsys):
    write_module("tasks_of_none", "x = 1\n")
    write_module(
        "tasks_unknown", "import seqio\nseqio.MixtureRegistry.add('of_unknown', ['no_such_task'], default_rate=1.0)\n"
    )
    write_module("tasks_that_end", "raise SystemExit('usage: tasks_that_end')\n")
    cases = {
        ("tasks_of_non",): r"MODULE=tasks_of_non cannot be imported\. ModuleNotFoundError: .*looked for in",
        ("tasks_of_none",): r"the module tasks_of_none registers nothing\. .*TaskRegistry\.add",
        ("tasks_unknown",): r"MODULE=tasks_unknown cannot be imported\. .*no_such_task",
        ("tasks_that_end",): r"MODULE=tasks_that_end cannot be imported\. SystemExit: usage: tasks_that_end\.",
        (f"{two_parts}.py",): rf"cannot be imported\. .*not as a file: write {two_parts}\.",
        (f"./{two_parts}.py",): rf"cannot be imported\. .*not as a file: write {two_parts}\.",
        (two_parts,): r"VOCABULARY is not set\.",
        (two_parts, "--gin.VOCABULARY=gone.model"): r"VOCABULARY=\S*gone\.model cannot be read\.",
        (two_parts, "--gin.DATA_GLOBE=x"): r"--gin\.DATA_GLOBE sets a macro that nothing reads\. .*DATA_GLOB",
        (two_parts, "--gin.TASK_FEATURE_LENGTHS={'inputs': 1}"): r"TASK_FEATURE_LENGTHS is {'inputs': 1}\.",
    }
    for words, expected in cases.items():
        err = run(capsys, "tasks", "check", *words, status=2)
        assert re.match(f"t5x_lite: error: .*{expected}", err) and err.count("\n") == 1, err
