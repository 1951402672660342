"""The command line: verbs, flags, and what a wrong one is answered with."""

import re
import subprocess
import sys

import pytest
from jax.errors import JaxRuntimeError

from t5x_lite import __version__, cli
from t5x_lite.errors import Preempted, RunError, UserError, nearest

CONFIG = ["config", "--gin_file=models/t5_1_1_small.gin", "--gin_file=runs/pretrain.gin"]

# Command line -> what its one line of error must say, as a regular expression.
WRONG = {
    "trian": r"unknown verb trian\. Nearest: train\. See t5x_lite --help\.",
    "frobnicate": r"unknown verb frobnicate\. Known: bench, config, ",
    "train --dryrun": r"unknown flag --dryrun\. Nearest: --dry_run.* See t5x_lite train --help\.",
    "train --gin_files=x.gin": r"unknown flag --gin_files=x\.gin\. Nearest: --gin_file",
    # No abbreviations: a new flag would change their meaning.
    "train --dry": r"unknown flag --dry\. Nearest: --dry_run",
    "infer --checkpiont=m --text=a": r"unknown flag --checkpiont=m\. Nearest: --checkpoint",
    "--dry_run train": r"unknown flag --dry_run\. .*See t5x_lite --help\.",
    "train examples/demo.gin": r"unknown argument examples/demo\.gin\. .*--gin_file",
    "infer --text=a": r"t5x_lite infer lacks an argument\. .*--checkpoint.* See t5x_lite infer --help\.",
    "infer --checkpoint=m": r"t5x_lite infer lacks an argument\. .*--text --input",
    "infer --checkpoint=m --text=a --input=b": r"--input does not fit\. Not allowed with argument --text\.",
    "convert --from=hff --input=a --output=b": r"--from cannot be hff\. Nearest: hf\.",
    "vocab trian --input=a --output=b": r"action cannot be trian\. Nearest: train\.",
    "vocab train --input=a --output=b --size=many": r"--size does not fit\. It is 'many', not a whole number",
    "infer --checkpoint=m --text=a --batch_size=0": r"--batch_size does not fit\. It is '0', not a whole number",
    "infer --checkpoint=m --text=a --beam_size=four": r"--beam_size does not fit\. It is 'four', not a whole number",
    "infer --checkpoint=m --text=a --beam_size=3": r"--beam_size is 3\. --decode=greedy does not use it\. Leave it out",
    "infer --checkpoint=m --text=a --num_return=2": r"--num_return is 2\. --decode=greedy does not use it\.",
    "infer --checkpoint=m --text=a --seed=2": r"--seed=2 is given\. --decode=greedy draws nothing\. Leave it out",
    "infer --checkpoint=m --text=a --decode=bean": r"--decode cannot be bean\. Nearest: beam\.",
    "infer --checkpoint=m --text=a --decode=beam --num_return=5": r"--num_return is 5\. A beam of 4 has no more",
    "infer --checkpoint=m --text=a --decode=beam --length_penalty=x": r"--length_penalty does not fit\. It is 'x', not",
    "infer --checkpoint=m --text=a --decode=beam --length_penalty=nan": r"--length_penalty is nan\. It must be a",
    "infer --checkpoint=m --text=a --decode=sample --top_p=0": r"--top_p is 0\.0\. It must be above 0 and at most 1",
    "infer --checkpoint=m --text=a --decode=sample --top_k=-1": r"--top_k does not fit\. It is '-1', not a whole",
    "infer --checkpoint=m --text=a --decode=sample --seed=4294967296": r"'4294967296', not .* from 0 to 4294967295\.",
    "eval --checkpoint=m --decode=sample --seed=-1": r"--seed does not fit\. It is '-1', not a whole number from 0",
    "eval --checkpoint=m --follow --poll_seconds=0": r"--poll_seconds does not fit\. It is '0', not a number above 0",
    "eval --checkpoint=m@all --num_return=2": r"unknown flag --num_return=2\.",
    "vocab train --input=a --output=b --gin.SIZE=3": r"--gin\.SIZE=3 is given\. The verb vocab reads no gin files\.",
    "vocab train --input=no/such* --output=b": r"--input=no/such\* matches no file\. .* Correct --input\.",
    "train": r"no --gin_file is given\. .*--gin_file=examples/demo\.gin.*--gin_file=runs/pretrain\.gin",
    "config --gin_file=examples/demo.gin --gin.BATCH_SIZE": r"--gin\.BATCH_SIZE has no value\. .*--gin\.BATCH_SIZE=",
    "config --gin_file=examples/demo.gin --gin.BATCH_SIZE --gin_file=m": r"--gin\.BATCH_SIZE has no value\.",
    "config --gin_file=examples/demo.gin --gin.BATCH_SIZE=": r"--gin\.BATCH_SIZE= gives no value\.",
    "config --gin_file=examples/demo.gin --gin.=3": r"--gin\.=3 is no binding\. .*NAME=value",
    "train --gin_file=examples/demo.gin --topology=v5e:4x4": r"--topology=v5e:4x4 is given without --dry_run\.",
    "train --gin_file=models/t5_1_1_small.gin --topology=v5e:4x4": r"--topology=v5e:4x4 is given without --dry_run\.",
    "train --gin_file=examples/demo.gin --num_slices=2": r"--num_slices=2 is given without --dry_run\.",
    "train --gin_file=examples/demo.gin --dry_run --num_slices=2": r"--num_slices=2 is given without --topology\.",
    "train --gin_file=examples/demo.gin --dry_run --num_slices=0": r"--num_slices does not fit\. It is '0', not a",
    # Only verbs that read tasks take a module of tasks.
    "infer --checkpoint=m --text=a --module=m": r"--module=m is given without --mixture_or_task\. .*Leave it out\.",
    "infer --checkpoint=m --input=a --split=s": r"--split=s is given without --mixture_or_task\.",
    "score --checkpoint=m --input=a --module=m": r"unknown flag --module=m\.",
    "config --gin_file=examples/demo.gin --module=m": r"unknown flag --module=m\.",
    "convert --from=hf --input=gs://b/m --output=m": r"--input=gs://b/m is not on this machine\. .*path with --input",
    "convert --from=hf --input=m --output=gs://b/m": r"--output=gs://b/m is not on this machine\. .*path with --output",
    "vocab train --input=a --output=gs://b/v.model": r"--output=gs://b/v\.model is not on this machine\.",
    "vocab train --input=a --output=/proc/v.model": r"--output=/proc cannot be written\.",
    "demo --output=gs://b/demo": r"--output=gs://b/demo is not on this machine\.",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_answered_in_one_line(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("t5x_lite: error: ") and err.count("\n") == 1
    assert re.search(WRONG[line], err), err
    assert list(tmp_path.iterdir()) == []


def test_a_home_directory_is_found_behind_an_equals_sign(monkeypatch):
    """A shell leaves --x=~/y as it is."""
    monkeypatch.setenv("HOME", "/home/me")
    given = {
        "train": "--gin_file",
        "eval --checkpoint=m": "--output_dir",
        "eval": "--checkpoint",
        "infer --checkpoint=m": "--input",
        "infer --checkpoint=m --text=a": "--output",
        "score --checkpoint=m": "--input",
        "score --checkpoint=m --input=a": "--output",
        "convert --from=hf --output=o": "--input",
        "convert --from=hf --input=i": "--output",
        "vocab train --output=o": "--input",
        "vocab train --input=i": "--output",
        "demo": "--output",
        "bench train": "--output",
    }
    for line, flag in given.items():
        for path, meant in (("~/m*@8", "/home/me/m*@8"), ("gs://b/~m", "gs://b/~m"), ("a/~b", "a/~b")):
            args = cli.parser().parse_args([*line.split(), f"{flag}={path}"])
            assert getattr(args, flag.removeprefix("--")) in (meant, [meant]), line
    assert cli.parser().parse_args(["report", "~/m"]).model_dir == "/home/me/m"


def test_the_traceback_is_shown_when_asked_for(capsys):
    assert cli.run(["config", "--gin_file=nowhere.gin", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "UserError" in err
    assert err.splitlines()[-1].startswith("t5x_lite: error: --gin_file=nowhere.gin is not there.")


def test_help_and_version(capsys):
    assert cli.run([]) == 0
    listing = capsys.readouterr().out
    for verb in ("train", "eval", "infer", "score", "config", "convert", "vocab", "report", "demo", "bench"):
        assert f"\n    {verb} " in listing
        with pytest.raises(SystemExit, match="0"):
            cli.run([verb, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: t5x_lite {verb} ")
    with pytest.raises(SystemExit, match="0"):
        cli.run(["--version"])
    assert capsys.readouterr().out == f"t5x_lite {__version__}\n"


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "t5x_lite", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("t5x_lite: error: unknown verb trian.") and done.stdout == ""


def test_a_reader_that_goes_away_is_no_error():
    """As with `| head`: the pipe is closed before anything is written to it."""
    command = [sys.executable, "-m", "t5x_lite", *CONFIG, "--gin.TRAIN_STEPS=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.parametrize(
    "error, status, kind",
    [
        (UserError("a", "b", "c"), 2, "error"),
        (RunError("a", "b", "c"), 1, "error"),
        (Preempted("saved"), 75, "preempted"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_statuses(error, status, kind, capsys, monkeypatch):
    def fails(args):
        raise error

    monkeypatch.setattr("t5x_lite.verbs.config.main", fails)
    assert cli.run(["config", "--gin_file=f"]) == status
    err = capsys.readouterr().err
    assert err.startswith(f"t5x_lite: {kind}") and err.count("\n") == 1


@pytest.mark.parametrize(
    "error, said",
    [
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes.\nmore"), "Out of memory: 9 bytes"),
        (MemoryError("Unable to allocate 9 bytes"), "Unable to allocate 9 bytes"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_memory_that_is_not_enough_is_no_traceback(error, said, capsys, monkeypatch):
    def fails(args):
        raise error

    monkeypatch.setattr("t5x_lite.verbs.config.main", fails)
    assert cli.run(["config", "--gin_file=f"]) == 1
    assert capsys.readouterr().err == (
        f"t5x_lite: error: there is not enough memory: {said}. What is written is whole. Lower --batch_size or "
        "--max_decode_length, or shorten the longest inputs, and run the same command again.\n"
    )


def test_what_is_wrong_with_the_program_keeps_its_traceback(monkeypatch):
    def fails(args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("t5x_lite.verbs.config.main", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(["config", "--gin_file=f"])


def test_a_device_that_fails_is_a_failure_of_the_run(capsys, monkeypatch):
    def fails(args):
        raise JaxRuntimeError("INTERNAL: it burns\nmore")

    monkeypatch.setattr("t5x_lite.verbs.config.main", fails)
    assert cli.run(["config", "--gin_file=f"]) == 1
    assert capsys.readouterr().err == (
        "t5x_lite: error: the device failed: INTERNAL: it burns. What is written is whole. See to that, and run it "
        "again.\n"
    )


def test_an_error_is_three_sentences():
    assert str(UserError("x is 3", "it is odd.", "set --x")) == "x is 3. It is odd. Set --x."


def test_nearest():
    assert nearest("trian", ["train", "eval"]) == "Nearest: train"
    assert nearest("batch_sise", ["BATCH_SIZE"]) == "Nearest: BATCH_SIZE"
    assert nearest("zzz", ["train", "eval"]) == "Known: eval, train"
    assert nearest("zzz", map(str, range(20))).endswith("and 12 more")
    assert nearest("zzz", []) == "None is known"


def test_vocab_train(tmp_path, capsys):
    text = "\n\n".join(f"line {n} of words, {n * n} in all" for n in range(200))
    (tmp_path / "text.txt").write_text(text)
    output = tmp_path / "v.model"
    assert cli.run(["vocab", "train", f"--input={tmp_path}/*.txt", "--size=60", f"--output={output}"]) == 0
    said = capsys.readouterr().out
    assert f"{output}: 60 pieces, with 100 sentinels 160 ids" in said
    # What it says to use: rows for every id, a multiple of 128.
    rows = re.search(r"--gin\.architecture\.Architecture\.vocab_size=(\d+)", said)
    assert int(rows[1]) == 256 and f"--gin.VOCABULARY={output}" in said

    assert cli.run(["vocab", "train", f"--input={tmp_path}/*.txt", "--size=5000", f"--output={tmp_path}/w.model"]) == 2
    assert "--size=5000 is too large for this text" in capsys.readouterr().err
    assert not (tmp_path / "w.model").exists()
