"""precompile: one real compile for a slice that is not here, and everything that is wrong before it."""

import importlib.util
import json
import re
import subprocess
import sys

import jax
import pytest

from t5x_lite import cli
from t5x_lite.parallel.chips import CHIPS
from t5x_lite.verbs import precompile, precompile_compare, precompile_page, precompile_text
from tests.conftest import as_shipped

JOB = ["--gin_file=models/t5_1_1_tiny.gin", "--gin_file=runs/pretrain.gin", "--gin_file=partition/fsdp.gin"]
JOB += ["--gin.TRAIN_STEPS=1000", "--gin.BATCH_SIZE=16"]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu compiles for TPUs: pip install 't5x_lite[tpu]'"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """One run for all tests that read the same."""
    return in_a_fresh_process(tmp_path_factory.mktemp("precompile"), "--topology=v5litepod-4")


def in_a_fresh_process(folder, *changed):
    """What one run prints and writes: (stdout, stderr, JSON, HTML)."""
    flags = [*JOB, *changed, "--price=2", "--output=f.json", "--html=f.html"]
    run = (
        "import sys; from t5x_lite import cli; status = cli.run(sys.argv[1:]); "
        "sys.exit(status or any(n.startswith('tensorflow') or n == 'seqio' for n in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", run, "precompile", *flags],
        capture_output=True, text=True, cwd=folder, env=as_shipped(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, json.loads((folder / "f.json").read_text()), (folder / "f.html").read_text()


@needs_libtpu
def test_a_job_is_compiled_by_one_command_without_tensorflow(compiled):
    printed, errors, result, _ = compiled
    assert errors == ""
    (report,) = result["reports"]
    assert report["slice"] == {
        "topology": "v5e:2x2", "accelerator_type": "v5litepod-4", "generation": "v5e", "slices": 1, "chips": 4,
        "devices": 4, "devices_per_chip": 1,
    }  # fmt: skip
    assert report["mesh"] == {"slice": 1, "data": 1, "fsdp": 4, "model": 1}
    assert "fits" in printed.splitlines()[0]
    assert report["warnings"] == []


@needs_libtpu
def test_the_parts_of_its_memory_make_the_whole(compiled):
    memory = compiled[2]["reports"][0]["memory"]
    kinds = ("parameters", "optimizer", "activations", "temporaries", "batch", "outputs", "code")
    assert sum(memory[kind] for kind in kinds) == memory["total"] < memory["usable"]
    # Float32, cut over four but for norms and position biases.
    assert memory["parameters"] == pytest.approx(compiled[2]["reports"][0]["job"]["parameters"], rel=0.01)
    assert memory["fits"]


@needs_libtpu
def test_its_figures_follow_from_each_other(compiled):
    report = compiled[2]["reports"][0]
    flops, times, job = report["flops"], report["roofline"], report["whole_job"]
    # Without remat attention's scores alone are computed again, and its softmax is summed by a column of ones a head.
    layers, heads, width, rows = 2, 2, 128, 16
    squares = layers * (512 * 512 + 114 * 114 + 114 * 512)
    again = 2 * rows * squares * (width + heads)
    assert flops["traced"] == pytest.approx(flops["analytic"] + again, rel=1e-3)
    chip = CHIPS["v5e"]
    assert times["at_peak_s"] == pytest.approx(flops["analytic"] / 4 / chip.peak_flops)
    slow, fast = times["not_overlapped"], times["overlapped"]
    assert slow["step_s"] == pytest.approx(max(times["compute_s"], times["hbm_s"]) + times["ici_s"])
    assert fast["step_s"] == max(times[k] for k in ("compute_s", "hbm_s", "ici_s", "dcn_s"))
    assert fast["mfu"] > slow["mfu"] == pytest.approx(times["at_peak_s"] / slow["step_s"])
    assert slow["tokens_per_second"] == pytest.approx(16 * (512 + 114) / slow["step_s"])
    assert times["ici_s"] == pytest.approx(sum(c["seconds"] for c in report["collectives"]))
    assert job["usd"]["overlapped"] == pytest.approx(fast["step_s"] * 1000 / 3600 * 4 * 2)


@needs_libtpu
def test_its_gathers_are_those_of_its_parameters(compiled):
    """Each kernel and both tables are gathered in bfloat16, once forward; the backward pass has them still."""
    report = compiled[2]["reports"][0]
    gathers = [c for c in report["collectives"] if c["kind"] == "all-gather"]
    assert {tuple(c["axes"]) for c in gathers} == {("fsdp",)}
    once = 2 * report["job"]["parameters"]
    assert once * 0.95 < sum(c["bytes"] for c in gathers) < 2 * once


@needs_libtpu
def test_gradients_are_reduced_and_scattered_over_the_cut(tmp_path):
    """In each microbatch; and copies add up their parts once a step, in float32."""
    wide = [f"--gin.architecture.Architecture.{name}" for name in ("embed_dim=512", "mlp_dim=1024")]
    wide += ["--gin.BATCH_SIZE=32", "--gin.MICROBATCHES=2"]
    mesh = '--gin.partition.Partition.mesh={"data": -1, "fsdp": 4}'
    *_, result, _ = in_a_fresh_process(tmp_path, "--topology=v5litepod-16", mesh, *wide)
    (report,) = result["reports"]
    moved = {(c["kind"], *c["axes"]): c["bytes"] for c in report["collectives"]}
    parameters = report["job"]["parameters"]
    # But for those of the two tables, which are thin beside their 32,128 rows.
    assert moved["reduce-scatter", "fsdp"] == pytest.approx(2 * 2 * (parameters - 2 * 32128 * 512), rel=0.05)
    assert moved["all-reduce", "data"] == pytest.approx(4 * parameters / 4, rel=0.01)


@needs_libtpu
def test_the_page_shows_what_is_printed_and_needs_nothing_else(compiled):
    printed, _, _, page = compiled
    assert printed.splitlines()[0] in page
    assert page.count("<svg") == 2
    assert not re.search(r"https?://|<script|<img|<link", page)
    assert "Nothing ran on a TPU" in page


def report_of(**memory):
    memory = {"parameters": 1, "optimizer": 1, "activations": 1, "temporaries": 1, "total": 4, "usable": 8} | memory
    return {
        "program": "train",
        "slice": {"topology": "v5e:2x2", "accelerator_type": "v5litepod-4", "slices": 1, "chips": 4, "devices": 4},
        "mesh": {"data": 4},
        "job": {
            "parameters": 5, "batch_size": 8, "feature_lengths": {"inputs": 4, "targets": 2}, "microbatches": 1,
            "remat": "none",
        },
        "compile_seconds": 1.0,
        "memory": memory,
        "flops": {"analytic": 10, "traced": 10, "ratio": 1.0},
        "warnings": ["<a & b>"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "message, needed",
    [
        (
            "E1000: ... the total memory required for HLO temporaries (20.00G) exceeds available HBM (15.75G).",
            20 * 2**30 + 7,
        ),
        ("Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded by 1.75G.", int(17.5 * 2**30)),
        ("no figure at all", 7),
    ],
)
def test_the_compilers_refusal_is_read(message, needed):
    assert precompile.refused_bytes(message, 7) == needed


def test_a_job_that_is_too_large_is_reported_and_ends_with_status_1(monkeypatch, capsys, tmp_path):
    """The compiler's refusal is a result: table and files say so, and the exit status does."""
    refusal = (
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (20.00G) exceeds available HBM (15.75G)."
    )
    monkeypatch.setattr(precompile, "compile_", lambda lowered: (None, refusal))
    monkeypatch.setattr(
        precompile,
        "slice_of",
        lambda topology, slices: {
            "topology": "v5e:1x1", "accelerator_type": "v5litepod-1", "generation": "v5e", "shape": (1, 1),
            "slices": 1, "chips": 1, "devices": jax.devices()[:1],
        },
    )  # fmt: skip
    output = tmp_path / "f.json"
    page = tmp_path / "f.html"
    status = cli.run(["precompile", *JOB, "--topology=v5e:1x1", f"--output={output}", f"--html={page}"])
    printed, errors = capsys.readouterr()
    assert status == 1
    assert re.match(
        r"t5x_lite: error: the train step does not fit on v5e:1x1\. Does not fit: the compiler needs", errors
    )
    assert "--gin.BATCH_SIZE" in errors
    memory = json.loads(output.read_text())["reports"][0]["memory"]
    assert not memory["fits"]
    assert 20 * 2**30 < memory["total"] < 20.1 * 2**30
    assert "does not fit" in printed and "does not fit" in page.read_text()


def test_pages_escape_what_they_show():
    page = precompile_page.render("<job>", [report_of(fits=True, verdict="fits")])
    assert "&lt;job&gt;" in page and "&lt;a &amp; b&gt;" in page
    assert "<job>" not in page


def test_the_longest_bar_and_the_limit_stay_within_the_picture():
    drawn = precompile_page.bars("T", [("a", [("x", 3.0), ("y", 1.0)]), ("b", [("x", 1.0)])], "ms", ("limit", 8.0))
    widths = [float(w) for w in re.findall(r'<rect[^>]* width="([\d.]+)"', drawn)]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01) and widths[1] == widths[2]
    assert all(float(x) <= 960 for x in re.findall(r'x[12]?="([\d.]+)"', drawn))


def test_libtpu_that_is_absent_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else real(name, *rest)
    )
    assert cli.run(["precompile", *JOB, "--topology=v5e:2x2"]) == 2
    assert "libtpu is not installed" in (said := capsys.readouterr().err)
    assert "pip install 't5x_lite[tpu]'" in said


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--topology=v5e:3x3"], "--topology=v5e:3x3 is no slice of v5e"),
        (["--topology=v9"], "names no TPU generation"),
        ([], "--topology"),
        (["--topology=v5e:2x2", "--num_slices=0"], "not a whole number of at least 1"),
        (["--topology=v5e:2x2", "--price=-1"], "--price does not fit"),
        (["--topology=v5e:2x2", "--output=/nowhere/f.json"], "--output=/nowhere/f.json cannot be written"),
        (["--topology=v5e:2x2", "--compare=remat"], "--compare=remat is not NAME=VALUE,VALUE"),
        (["--topology=v5e:2x2", "--compare=remt=dots"], "compares remt, which is no name of a job's. Nearest: remat"),
        (["--topology=v5e:2x2", "--compare=remat=dots", "--compare=remat=full"], "--compare names remat twice"),
        (["--topology=v5e:2x2", "--compare=remat=dots", "--program=all"], "ranked by one program"),
        (["--topology=v5e:2x2", "--compare=remat=dots", "--html=f.html"], "--html is given with --compare"),
        (["--topology=v5e:2x2", "--program=serve"], "--program cannot be serve"),
    ],
)
def test_wrong_flags_end_with_status_2(flags, said, capsys):
    assert cli.run(["precompile", *JOB, *flags]) == 2
    assert said in capsys.readouterr().err


def test_what_is_compared_is_split_at_commas_outside_brackets():
    assert precompile_compare._axis("remat=none,dots") == ("remat", ["none", "dots"])
    assert precompile_compare._axis('mesh={"data": -1, "fsdp": 4},{"fsdp": -1}') == (
        "mesh", ['{"data": -1, "fsdp": 4}', '{"fsdp": -1}'],
    )  # fmt: skip


def test_variants_are_ranked_and_those_that_fail_say_why(monkeypatch, capsys, tmp_path):
    """The processes that compile are stood in for: their reports decide the order."""
    seconds = {"none": None, "dots": 2.0, "full": 3.0}

    def run(command, **_):
        remat = next(w.rpartition("=")[2] for w in command if "Architecture.remat=" in w)
        path = next(w.partition("=")[2] for w in command if w.startswith("--output="))
        assert "--gin_file=partition/data.gin" in command
        if seconds[remat] is None:
            return subprocess.CompletedProcess(command, 2, "", "t5x_lite: error: no such thing. Why. Fix.")
        speed = {"step_s": seconds[remat], "mfu": 1 / seconds[remat], "tokens_per_second": 100 / seconds[remat]}
        report = report_of(fits=True, verdict="fits") | {
            "roofline": {"overlapped": speed, "not_overlapped": speed, "bound": "compute"}
        }
        with open(path, "w") as file:
            json.dump({"reports": [report]}, file)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(precompile_compare.subprocess, "run", run)
    monkeypatch.setattr(precompile, "slice_of", lambda topology, num_slices: None)
    output = tmp_path / "c.json"
    flags = ["--compare=remat=full,none,dots", "--compare=partition=data", f"--output={output}"]
    assert cli.run(["precompile", *JOB, "--topology=v5e:2x2", *flags]) == 0
    rows = json.loads(output.read_text())["compare"]
    assert [row["variant"]["remat"] for row in rows] == ["dots", "full", "none"]
    assert rows[-1]["reason"] == "no such thing. Why. Fix."
    table = capsys.readouterr().out.rpartition("GiB a device  step ms")[2]
    assert table.index("dots") < table.index("full") < table.index("remat=none, partition=data: no such thing")
    # Where nothing could be compiled, the command has failed.
    assert cli.run(["precompile", *JOB, "--topology=v5e:2x2", "--compare=remat=none", "--compare=partition=data"]) == 1
    printed, errors = capsys.readouterr()
    assert "remat=none, partition=data: no such thing. Why. Fix." in printed and "estimates" not in printed
    assert errors.startswith(
        "t5x_lite: error: none of the 1 variants could be compiled and fits on v5e:2x2. The reason"
    )


@needs_libtpu
def test_a_slice_that_is_none_is_refused_before_any_variant_is_compiled(capsys):
    assert cli.run(["precompile", *JOB, "--topology=v5e:3x3", "--compare=remat=none,dots"]) == 2
    printed, errors = capsys.readouterr()
    assert printed == "" and "--topology=v5e:3x3 is no slice of v5e" in errors


@pytest.mark.parametrize(
    "hours, shown",
    [(0.001, "3.6 seconds"), (0.11, "6.6 minutes"), (1.5, "1.5 hours"), (47, "47.0 hours"), (60, "2.5 days")],
)
def test_durations_are_told_in_a_unit_that_fits(hours, shown):
    assert precompile_text.duration(hours) == shown


@pytest.mark.parametrize("usd, shown", [(0.534, "0.53"), (99, "99.00"), (5139.4, "5,139")])
def test_cents_count_in_small_amounts(usd, shown):
    assert precompile_text.money(usd) == shown


def test_columns_are_aligned():
    assert precompile_text.table([("a", "b"), ("cc", "1")]) == ["a   b", "cc  1"]


@pytest.mark.parametrize("price, cost", [(None, " chips"), (2.0, "800 to 1,600 USD at 2 a chip hour")])
def test_the_whole_job_is_told_with_its_cost_where_a_price_is_given(price, cost):
    speed = {"step_s": 1.0, "mfu": 0.5, "tokens_per_second": 10.0}
    times = {k: 1.0 for k in ("compute_s", "kernels_s", "hbm_s", "ici_s", "dcn_s", "at_peak_s")}
    times |= {"bound": "compute", "overlapped": speed, "not_overlapped": speed | {"step_s": 2.0}}
    report = report_of(fits=True, verdict="fits") | {"roofline": times, "collectives": []}
    report["whole_job"] = precompile.whole_job(report, 360_000, price)
    printed = precompile_text.text(report)
    assert "360,000 steps take an estimated 4.2 days to 8.3 days on 4" + " chips" in printed
    assert cost in printed
    assert precompile_page.render("job", [report]).count("USD") == (2 if price else 0)
