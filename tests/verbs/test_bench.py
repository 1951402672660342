"""bench: the train step is measured without the data libraries, the input pipeline stage by stage, both beside their
peers where those are installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from t5x_lite import cli
from t5x_lite.errors import UserError
from t5x_lite.model.architecture import Architecture
from t5x_lite.verbs import bench, bench_decode, bench_huggingface, bench_input, bench_startup, bench_train

ROOT = Path(__file__).parents[2]
DATA_LIBRARIES = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "sentencepiece", "tensorboard")
TINY = (
    *("--gin_file=models/t5_1_1_tiny.gin", "--batch_size=2", "--inputs=16", "--targets=8", "--runs=2"),
    *("--gin.architecture.Architecture.encoder_layers=1", "--gin.architecture.Architecture.decoder_layers=1"),
)


def test_train_runs_without_the_data_libraries(tmp_path):
    """In every process of it: each of them would fail to import what is blocked by name."""
    for name in DATA_LIBRARIES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    output = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "t5x_lite", "bench", "train", *TINY, f"--output={output}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    ours = result["contestants"][bench_train.OURS]
    assert len(ours["steps"]) == 2
    # Two steps on one fixed batch of random tokens: about log(V) nats, and falling.
    losses = [s["loss"] for s in ours["steps"]]
    assert 0 < losses[1] < losses[0] < 20
    assert ours["peak_rss_bytes"] > 2**26
    assert all(ours["parts"][part] > 0 for part in ("trace_s", "compile_s", "init_s"))
    assert result["machine"]["versions"]["jax"]
    assert "tokens/s" in done.stdout and f"{ours['parameters']:,} parameters" in done.stdout
    if importlib.util.find_spec("torch") is None:
        assert "not measured, torch" in done.stdout
    else:
        assert result["contestants"][bench_train.PEER]["parameters"] == ours["parameters"]
        assert len(result["cpu_s_ratio"]) == 2


def _three(argument):
    return {"given": argument}, lambda: {"loss": 3.0}


def _wrong(argument):
    raise bench_train.UserError("it is", "so", "change --this")


def _failing(argument):
    raise MemoryError("no room")


def _dying(argument):
    os._exit(9)


def test_a_contestant_steps_when_told_and_measures_itself():
    contestant = bench_train.Contestant("three", _three, 5)
    step = contestant.step()
    assert contestant.about == {"given": 5}
    assert step["loss"] == 3.0 and step["wall_s"] >= 0 and step["cpu_s"] >= 0
    assert contestant.close() > 2**20
    with pytest.raises(OSError):
        contestant.step()


@pytest.mark.parametrize(
    "make, error, text",
    [
        (_wrong, bench_train.UserError, "Change --this"),
        (_failing, bench_train.RunError, "MemoryError: no room"),
        (_dying, bench_train.RunError, "status 9"),
    ],
)
def test_a_contestant_that_fails_says_why(make, error, text):
    with pytest.raises(error, match=text):
        bench_train.Contestant("other", make, None)


def test_the_peer_has_the_shape_of_the_job():
    arch = Architecture(embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, encoder_layers=3, decoder_layers=2)
    settings = bench_huggingface.configuration(arch)
    assert (settings["d_model"], settings["num_heads"], settings["d_kv"], settings["d_ff"]) == (8, 2, 4, 16)
    assert (settings["num_layers"], settings["num_decoder_layers"]) == (3, 2)
    assert settings["feed_forward_proj"] == "gated-gelu" and not settings["tie_word_embeddings"]
    with pytest.raises(UserError, match="mlp_activations"):
        bench_huggingface.configuration(Architecture(mlp_activations=("silu", "silu")))


def test_all_contestants_see_the_same_tokens_and_no_padding():
    work = bench_train.Workload((), (), 3, 5, 4, "float32")
    first, second = bench_train.random_tokens(work, 11), bench_train.random_tokens(work, 11)
    assert all((a == b).all() for a, b in zip(first, second))
    assert [x.shape for x in first] == [(3, 5), (3, 4)]
    assert all(x.min() >= 2 and x.max() < 11 for x in first)


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--runs=0"], "--runs does not fit. It is '0', not a whole number of at least 1."),
        (["--output=/nowhere/at/all.json"], "--output=/nowhere/at/all.json cannot be written. No such file"),
        (["--gin.BATCH_SIZE=4"], "--gin.BATCH_SIZE is given. Bench train sets it itself. Give --batch_size."),
        (["--gin.architecture.Architecture.dtype=bfloat16"], "sets it itself. Give --dtype."),
        (["--gin_file=models/huge.gin"], "--gin_file=models/huge.gin is not there"),
        ([*TINY, "--gin.architecture.Architecture.mlp_dim=0"], "Architecture.mlp_dim is 0"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_measured(flags, text, capsys):
    assert cli.run(["bench", "train", *flags]) == 2
    assert text in capsys.readouterr().err


def test_what_bench_startup_sets_is_refused_too(capsys):
    assert cli.run(["bench", "startup", "--gin.MODEL_DIR=m"]) == 2
    assert "--gin.MODEL_DIR is given. Bench startup sets it itself." in capsys.readouterr().err


@pytest.mark.parametrize("name", bench._SET["train"])
def test_what_a_measurement_sets_is_no_users_choice(name, capsys):
    assert cli.run(["bench", "train", f"--gin.{name}=1"]) == 2
    assert f"--gin.{name} is given. Bench train sets it itself." in capsys.readouterr().err


def test_figures_that_json_cannot_hold_are_null():
    result = {"a": [1.0, float("nan"), {"b": float("inf")}], "c": (2, "x", None, True)}
    assert bench._finite(result) == {"a": [1.0, None, {"b": None}], "c": [2, "x", None, True]}


@pytest.mark.parametrize(
    "values, text",
    [
        ((0.0241, 0.0242, 0.0245), "0.0242 (0.0241 to 0.0245)"),
        ((8.1, 8.36, 9.0), "8.36 (8.10 to 9.00)"),
        ((140.0, 151.26, 152.0), "151.26 (140.00 to 152.00)"),
        ((0.0, 0.0, 1.0), "0.00 (0.00 to 1.00)"),
    ],
)
def test_the_spread_shows_three_digits_of_small_figures(values, text):
    assert bench_train.spread(values) == text


def test_table_aligns_names_left_and_figures_right():
    assert bench.table([("", "s"), ("long name", "1.0"), ("n", "10.0")]) == (
        "              s\nlong name   1.0\nn          10.0"
    )


def test_decode_measures_greedy_and_a_beam(tmp_path, capsys):
    output = tmp_path / "bench.json"
    assert cli.run(["bench", "decode", *TINY[:4], "--runs=1", *TINY[5:], "--beam_size=3", f"--output={output}"]) == 0
    cases, shown = json.loads(output.read_text())["cases"], capsys.readouterr().out
    assert [case["beam_size"] for case in cases] == [1, 3]
    assert "greedy, batch 2, 16 inputs to 8 new tokens" in shown and "beam 3, batch 2" in shown
    for case in cases:
        own = case["contestants"][bench_decode.OURS]
        assert len(own["runs"]) == 1 and own["runs"][0]["wall_s"] > 0 and own["peak_rss_bytes"] > 2**26
        if importlib.util.find_spec("torch") is None:
            assert "not measured, torch" in shown and "wall_s_ratio" not in case
        else:
            assert case["contestants"][bench_decode.PEER]["parameters"] == own["parameters"]
            # The same weights and inputs, all of them to the full length.
            assert case["equal_tokens"] == 1 and len(case["wall_s_ratio"]) == len(case["cpu_s_ratio"]) == 1


def test_decode_counts_equal_tokens():
    assert bench_decode.equal_share([[1, 2], [3, 4]], [[1, 2], [5, 4]]) == 0.75
    with pytest.raises(ValueError):
        bench_decode.equal_share([[1, 2]], [[1]])


@pytest.mark.parametrize("name", bench._SET["decode"])
def test_what_bench_decode_sets_is_no_users_choice(name, capsys):
    assert cli.run(["bench", "decode", f"--gin.{name}=1"]) == 2
    assert f"--gin.{name} is given. Bench decode sets it itself." in capsys.readouterr().err


# Lines of a run as they came, shortened.
RUN = [
    (1.7, "WARNING:jax._src.dispatch:Finished tracing initial_state for jit in 0.029418230 sec"),
    (5.5, "76,961,152 parameters on 1 x cpu (mesh one device); batch 8 x (512 + 114) tokens of demo_span_corruption"),
    (6.5, "WARNING:jax._src.dispatch:Finished tracing train_step for jit in 0.992294312 sec"),
    (7.9, "WARNING:jax._src.dispatch:Finished jaxpr to MLIR module conversion jit(train_step) in 1.283973694 sec"),
    (9.2, "WARNING:jax._src.dispatch:Finished XLA compilation of jit(init) in 6.108266115 sec"),
    (29.4, "WARNING:jax._src.dispatch:Finished XLA compilation of jit(train_step) in 21.613568783 sec"),
    (29.5, "ready after 28.0 s; training from step 0 to 1"),
    (57.3, "first step done after 55.8 s"),
]


def test_startup_reads_the_moments_of_a_run():
    found = bench_startup.moments(RUN)
    assert (found["task_s"], found["ready_s"], found["first_step_s"]) == (5.5, 29.5, 57.3)
    assert [round(found[k], 2) for k in ("trace_s", "lower_s", "compile_s")] == [0.99, 1.28, 21.61]
    shown = bench_startup.text({"cold cache": [found], "resume": [bench_startup.moments([])]})
    heading, cold, resume = shown.splitlines()[1:]
    assert cold.split()[:6] == ["cold", "cache", "29.5", "(29.5", "to", "29.5)"]
    assert "24.0" in cold and "27.8" in cold
    assert resume.split() == ["resume", *["-"] * 8]


def test_startup_says_how_a_run_failed():
    with pytest.raises(bench_startup.RunError, match="status 3: no such thing"):
        bench_startup._run(
            [sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"], {}
        )


def test_startup_times_lines_when_they_come():
    code = "import sys, time; print('a', file=sys.stderr, flush=True); time.sleep(.3); print('b', file=sys.stderr)"
    (first, a), (second, b) = bench_startup._run([sys.executable, "-c", code], {})
    assert (a, b) == ("a", "b") and 0 < first and second - first > 0.25


def text_flags(corpus, files="train-*.json.gz"):
    return (
        "MIXTURE_OR_TASK_NAME=text_span_corruption",
        f"DATA_GLOB={corpus}/{files}",
        f"VOCABULARY={corpus}/vocabulary.model",
    )


def input_work(*flags):
    return bench_input.Workload(("runs/pretrain.gin", "models/t5_1_1_tiny.gin"), flags, 4, 64, 24)


def test_input_counts_documents_examples_and_tokens(corpus, tmp_path, capsys):
    output = tmp_path / "bench.json"
    flags = ["--gin_file=models/t5_1_1_tiny.gin", "--batch_size=4", "--inputs=64", "--targets=24", "--runs=1"]
    bindings = [f"--gin.{flag}" for flag in text_flags(corpus)]
    assert cli.run(["bench", "input", *flags, *bindings, f"--output={output}"]) == 0
    result, shown = json.loads(output.read_text()), capsys.readouterr().out
    assert result["documents"] == 200 and "text_span_corruption: 200 documents" in shown
    (ours,) = result["passes"][bench_input.OURS]
    assert 0 < ours["rows"] <= ours["examples"] < ours["tokens"] <= ours["rows"] * (64 + 24)
    assert ours["wall_s"] > 0 and ours["cpu_s"] > 0
    assert all(len(result["stages"][stage]) == 1 for stage in ("reading", "tokenisation", "objective"))
    (first,) = result["first_batch"][bench_input.OURS]
    assert first["shards"] == 4 and 0 < first["wall_s"] < 60
    if importlib.util.find_spec("t5") is None:
        assert "seqio with t5: not measured, t5 not installed" in shown
    else:
        (theirs,) = result["passes"][bench_input.PEER]
        assert abs(theirs["tokens"] / ours["tokens"] - 1) < 0.05


def test_input_passes_over_what_training_reads(corpus):
    """Twice the same, and as many tokens as the pipeline of the evaluation has."""
    from t5x_lite.data import examples

    work = input_work(*text_flags(corpus))
    _, step = bench_input.our_pass(work)
    first = step()
    assert {**first, "wall_s": 0} == {**step(), "wall_s": 0}
    _, task, explain = bench_input.opened(work)
    ((_, stream),) = examples.evaluation_streams(task, "train", work.lengths, True, 0, False, explain)
    made = [example for row in stream.take(10_000) for example in row]
    assert len(made) == first["examples"]
    assert sum(len(array) for example in made for array in example.values()) == first["tokens"]


@pytest.mark.parametrize("stage, elements", [("reading", 3), ("tokenisation", 3), ("objective", 1)])
def test_a_pass_up_to_a_stage_meets_every_record(corpus, tmp_path, stage, elements):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 3)
    (tmp_path / "vocabulary.model").write_bytes((corpus / "vocabulary.model").read_bytes())
    work = input_work(*text_flags(tmp_path, "a.jsonl"))
    about, step = bench_input.pass_up_to(stage, work)
    assert about == {"elements": elements} and step() == {}
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("no json\n")
    with pytest.raises(Exception, match="Record 4 of "):
        step()
    with pytest.raises(UserError, match=r"Record 4 of .*a\.jsonl cannot be read"):
        bench_input.pass_up_to(stage, work)


def test_input_measures_no_mixture(corpus):
    import seqio

    bench_input.opened(input_work(*text_flags(corpus)))  # registers the shipped tasks
    seqio.MixtureRegistry.add("bench_of_two", ["text_span_corruption", "text_prefix_lm"], default_rate=1)
    try:
        with pytest.raises(UserError, match="bench_of_two is a mixture.*one of text_prefix_lm, text_span_corruption"):
            bench_input.opened(input_work(*text_flags(corpus), "MIXTURE_OR_TASK_NAME=bench_of_two"))
    finally:
        seqio.MixtureRegistry.remove("bench_of_two")


def test_tokens_are_counted_where_segments_are():
    inputs, targets = np.array([[1, 1, 2, 0], [1, 1, 1, 1]]), np.array([[1, 2, 2, 0], [1, 0, 0, 0]])
    batch = {"encoder_segment_ids": inputs, "decoder_segment_ids": targets}
    assert bench_input.counted([batch, batch]) == {"rows": 4, "examples": 6, "tokens": 22}
    assert bench_input.counted([]) == {"rows": 0, "examples": 0, "tokens": 0}


def test_input_shows_shares_and_ratios():
    def steps(*cpu, tokens=1000):
        return [{"wall_s": c / 2, "cpu_s": c, "rows": 2, "examples": 5, "tokens": tokens} for c in cpu]

    passes = {bench_input.OURS: steps(4.0, 5.0), bench_input.PEER: steps(16.0, 15.0)}
    result = {
        "task": "a_task",
        "documents": 20,
        "stages": {"reading": steps(1.0, 1.0), "tokenisation": steps(3.0, 3.0), "objective": steps(3.5, 4.0)},
        "passes": passes,
        "about": dict.fromkeys(passes, {"peak_rss_bytes": 2**20}),
        "first_batch": {
            bench_input.OURS: [{"wall_s": 1.0, "cpu_s": 2.0, "shards": 4}],
            bench_input.PEER: [{"wall_s": 3.0, "cpu_s": 3.0}],
        },
    } | bench_input._ratios(passes)
    assert result["cpu_s_ratio"] == result["wall_s_ratio"] == [4.0, 3.0]
    assert bench_input.stage_seconds(result) == {
        "reading": [1.0, 1.0], "tokenisation": [2.0, 2.0], "objective": [0.5, 1.0], "packing": [0.5, 1.0]
    }  # fmt: skip
    lines = bench_input.text(result, input_work()).splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert "t5x_lite, CPU 4.50 (4.00 to 5.00) 4 1 222" in words
    assert "t5x_lite / seqio with t5, wall 3.50 (3.00 to 4.00)" in words
    assert "tokenisation 2.00 (2.00 to 2.00) 44%" in words
    assert "t5x_lite, 4 shards 1.00 (1.00 to 1.00) 2.00 (2.00 to 2.00)" in words


@pytest.mark.parametrize("name", bench._SET["input"])
def test_what_bench_input_sets_is_no_users_choice(name, capsys):
    assert cli.run(["bench", "input", f"--gin.{name}=1"]) == 2
    assert f"--gin.{name} is given. Bench input sets it itself." in capsys.readouterr().err


def test_input_says_which_file_is_wrong(corpus, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": 3}\n')
    flags = [f"--gin.{flag}" for flag in (*text_flags(corpus)[::2], f"DATA_GLOB={tmp_path}/a.jsonl")]
    assert cli.run(["bench", "input", "--runs=1", *flags]) == 2
    assert "a.jsonl cannot be read. It has no string in the field" in capsys.readouterr().err
