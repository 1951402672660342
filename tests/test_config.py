"""gin files: where they are found, that mistakes in them are named, and that what is printed runs again."""

import itertools
import re
import sys
from pathlib import Path

import pytest

from t5x_lite import cli, config, job
from t5x_lite.errors import UserError

SMALL_FILES = ["models/t5_1_1_small.gin", "runs/pretrain.gin"]
SMALL = [f"--gin_file={name}" for name in SMALL_FILES]
RUN = [*SMALL, "--gin.TRAIN_STEPS=10"]
DYNAMIC = "from __gin__ import dynamic_registration\n"


@pytest.fixture
def answer(capsys, tmp_path, monkeypatch):
    """A function: command line -> the output of a command that must succeed; in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> str:
        status = cli.run(list(argv))
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        return out

    return run


@pytest.fixture
def refusal(capsys, tmp_path, monkeypatch):
    """A function: command line -> the one line of error of a command that must be refused."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> str:
        assert cli.run(list(argv)) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("t5x_lite: error: ") and err.count("\n") == 1, err
        return err.removeprefix("t5x_lite: error: ").rstrip("\n")

    return run


def macro(text: str, name: str) -> str:
    return re.search(rf"^{name} = (.*)$", text, re.MULTILINE)[1]


SHIPPED = sorted(str(p.relative_to(config.root())) for p in config.root().rglob("*.gin"))


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.split("/")[0] in ("models", "optim", "partition")])
def test_every_shipped_part_fits_a_run(name, answer):
    model = [] if name.startswith("models/") else SMALL[:1]
    printed = answer("config", *model, SMALL[1], f"--gin_file={name}", "--gin.TRAIN_STEPS=10")
    assert macro(printed, "MODEL") == "@architecture.Architecture()"


@pytest.mark.parametrize("command", [
    RUN,
    [SMALL[0], "--gin_file=runs/finetune.gin", "--gin.TRAIN_STEPS=10", "--gin.INITIAL_CHECKPOINT_PATH=m@3"],
    ["--gin_file=examples/demo.gin"],
    [*RUN, "--gin_file=partition/2d.gin", "--gin_file=optim/adamw_rms.gin", "--gin.DATA_GLOB=/a b/'c'*.json"],
])  # fmt: skip
def test_what_is_printed_runs_again_and_prints_the_same(command, answer, tmp_path):
    printed = answer("config", *command)
    (tmp_path / "printed.gin").write_text(printed)
    assert answer("config", "--gin_file=printed.gin") == printed


@pytest.mark.parametrize("given, read", [
    ("MODEL_DIR=/x/y", "/x/y"),
    ("MODEL_DIR=gs://bucket/a-b@c", "gs://bucket/a-b@c"),
    ("MIXTURE_OR_TASK_NAME=2024", "2024"),
    ("MODEL_DIR='/x/y'", "/x/y"),
    ('MODEL_DIR="/it\'s here"', "/it's here"),
    ("MODEL_DIR=/it's", "/it's"),
    ("DATA_GLOB=/c4/en/*.json.gz,/more/[ab]?.txt", "/c4/en/*.json.gz,/more/[ab]?.txt"),
    ("MIXTURE_OR_TASK_MODULE=[ab]", "[ab]"),
    ("DATA_GLOB=None", None),
    ("BATCH_SIZE=64", 64),
    ("Z_LOSS=1e-3", 1e-3),
    ("PACK=False", False),
    ("TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}", {"inputs": 8, "targets": 4}),
    ("architecture.Architecture.dtype=float32", "float32"),
    ("EVAL_BATCHES=%BATCH_SIZE", 128),
])  # fmt: skip
def test_values_on_the_command_line_need_no_quotes(given, read):
    job = config.build(config.load(SMALL_FILES, [
        "TRAIN_STEPS=10", "MIXTURE_OR_TASK_NAME=t", "VOCABULARY=bytes",
        *([] if given.startswith("MODEL_DIR") else ["MODEL_DIR=m"]), given,
    ]))  # fmt: skip
    name = given.partition("=")[0].rpartition(".")[2].lower()
    name = {"task_feature_lengths": "feature_lengths"}.get(name, name)
    assert (job.model.dtype if name == "dtype" else getattr(job, name)) == read


# What is bound -> what it means in the working directory {here}.
PATHS = [
    ("MODEL_DIR=runs/../x", "model_dir", "{here}/x"),
    ("MODEL_DIR=~/x", "model_dir", "{home}/x"),
    ("MODEL_DIR=2024", "model_dir", "{here}/2024"),
    ("MODEL_DIR=gs://bucket/x", "model_dir", "gs://bucket/x"),
    ("DATA_GLOB=a/*.json.gz, ~/[b]?.json,gs://c/**,/d", "data_glob",
     "{pattern}/a/*.json.gz,{home}/[b]?.json,gs://c/**,/d"),
    ("VALIDATION_GLOB=[ab]*.txt", "validation_glob", "{pattern}/[ab]*.txt"),
    ("DATA_DIR=tfds", "data_dir", "{here}/tfds"),
    ("TASK_CACHE_DIR=~/caches", "task_cache_dir", "{home}/caches"),
    ("VOCABULARY=spiece.model", "vocabulary", "{here}/spiece.model"),
    ("VOCABULARY=bytes", "vocabulary", "bytes"),
    ("VOCABULARY=demo", "vocabulary", "demo"),
    ("INITIAL_CHECKPOINT_PATH=~/m@3", "initial_checkpoint", "{home}/m@3"),
    ("INITIAL_CHECKPOINT_PATH=m@latest", "initial_checkpoint", "{here}/m@latest"),
    ("DATA_GLOB=None", "data_glob", None),
    ("job.Job.data_dir=tfds", "data_dir", "{here}/tfds"),
    ("MODEL_DIR=%MIXTURE_OR_TASK_NAME", "model_dir", "{here}/t"),
]  # fmt: skip


@pytest.mark.parametrize("how", ["flag", "file"])
@pytest.mark.parametrize("given, field, path", PATHS)
def test_local_paths_become_absolute(given, field, path, how, tmp_path, monkeypatch):
    here = tmp_path / "a [b]*"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", "/home/t5")
    name, _, value = given.partition("=")
    flags = ["TRAIN_STEPS=10", "MIXTURE_OR_TASK_NAME=t", "VOCABULARY=bytes", "MODEL_DIR=m"]
    flags = [flag for flag in flags if not flag.startswith(f"{name}=")]
    files = [*SMALL_FILES]
    if how == "flag":
        flags.append(given)
    else:
        text = value if value == "None" or value.startswith("%") else repr(value)
        Path("own.gin").write_text(f"{DYNAMIC}from t5x_lite import job\n{name} = {text}\n")
        files.append("own.gin")
    job = config.build(config.load(files, flags))
    pattern = f"{tmp_path}/a [[]b][*]"
    assert getattr(job, field) == (path and path.format(here=here, home="/home/t5", pattern=pattern))
    # What is written beside a run means the same elsewhere.
    (tmp_path / "config.gin").write_text(config.resolved())
    monkeypatch.chdir(tmp_path)
    assert getattr(config.build(config.load(["config.gin"])), field) == getattr(job, field)


def test_a_glob_finds_the_files_of_a_working_directory_whose_name_looks_like_a_pattern(tmp_path, monkeypatch):
    from t5x_lite.tasks import documents

    here = tmp_path / "x[1], y*"
    here.mkdir()
    (here / "a.txt").touch()
    monkeypatch.chdir(here)
    files = [*SMALL_FILES]
    flags = ["TRAIN_STEPS=1", "MODEL_DIR=m", "VOCABULARY=bytes", "MIXTURE_OR_TASK_NAME=t", "DATA_GLOB=*.txt"]
    job = config.build(config.load(files, flags))
    monkeypatch.chdir(tmp_path)
    assert documents.expand(job.data_glob, "DATA_GLOB") == [str(here / "a.txt")]


def test_a_path_that_is_no_text_is_refused_as_before(refusal):
    assert refusal("config", *RUN, "--gin.MODEL_DIR=%MODEL_DIRECTORY").startswith("MODEL_DIRECTORY is not set.")
    wrong = ["--gin.MIXTURE_OR_TASK_NAME=t", "--gin.VOCABULARY=bytes", "--gin.job.Job.model_dir=3"]
    assert refusal("train", "--dry_run", *RUN, *wrong).startswith("MODEL_DIR is 3. It must be a text")


def test_a_value_may_be_the_next_word(answer):
    assert macro(answer("config", *RUN, "--gin.BATCH_SIZE", "64"), "BATCH_SIZE") == "64"


def test_later_files_and_flags_win(answer, tmp_path):
    (tmp_path / "a.gin").write_text("BATCH_SIZE = 8\nSAVE_PERIOD = 8\n")
    (tmp_path / "b.gin").write_text("BATCH_SIZE = 16\nSAVE_PERIOD = 16\n")
    printed = answer("config", *RUN, "--gin_file=a.gin", "--gin_file=b.gin", "--gin.SAVE_PERIOD=32")
    assert (macro(printed, "BATCH_SIZE"), macro(printed, "SAVE_PERIOD")) == ("16", "32")


@pytest.mark.parametrize("model, own", [("t5_1_0_small", 0.1), ("t5_1_1_small", 0.0)])
def test_dropout_is_the_runs_before_the_models_in_any_order_of_the_files(model, own):
    def dropout(run, *bindings):
        rates = {
            config.build(config.load(files, [
                "TRAIN_STEPS=10", "MIXTURE_OR_TASK_NAME=t", "VOCABULARY=bytes", "MODEL_DIR=m",
                "INITIAL_CHECKPOINT_PATH=i", *bindings,
            ])).model.dropout_rate
            for files in itertools.permutations([f"models/{model}.gin", f"runs/{run}.gin"])
        }  # fmt: skip
        return rates

    assert dropout("pretrain") == {own}
    assert dropout("finetune") == {0.1}
    for run in ("pretrain", "finetune"):
        assert dropout(run, "DROPOUT_RATE=0.25") == {0.25}
        assert dropout(run, "DROPOUT_RATE=0") == {0}
        assert dropout(run, "DROPOUT_RATE=None") == {own}


def built(*bindings, files=()):
    needed = ["MIXTURE_OR_TASK_NAME=t", "VOCABULARY=bytes", "MODEL_DIR=m"]
    return config.build(config.load([*SMALL_FILES, *files], [*needed, *bindings]))


def test_rsqrt_decays_to_the_last_step():
    rate = built("TRAIN_STEPS=1000", "schedule.rsqrt.linear_decay_steps=100").learning_rate
    assert [float(rate(step)) for step in (900, 950, 1000)] == pytest.approx([0.01, 0.005, 0.0])


def test_the_rate_warms_up_to_rsqrt():
    warm = built("TRAIN_STEPS=10", files=["optim/adamw_rms.gin", "optim/rsqrt_warmup.gin"]).learning_rate
    full = built("TRAIN_STEPS=10").learning_rate
    assert float(warm(0)) == pytest.approx(1e-6) and float(warm(4_999)) == pytest.approx(0.005)
    for step in (9_999, 40_000):
        assert float(warm(step)) == float(full(step))


def test_a_folder_called_like_ours_does_not_capture_an_include(answer, tmp_path):
    for name in ("runs", "models", "optim"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs/job.gin").write_text("this is no gin file")
    (tmp_path / "optim/rsqrt.gin").write_text("this is no gin file")
    assert macro(answer("config", *RUN), "TRAIN_STEPS") == "10"


def test_an_own_file_includes_own_and_shipped_files(answer, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/sizes.gin").write_text("BATCH_SIZE = 8\n")
    (tmp_path / "run.gin").write_text(
        "include 'models/t5_1_1_small.gin'\ninclude 'runs/pretrain.gin'\ninclude 'own/sizes.gin'\nTRAIN_STEPS = 3\n"
    )
    printed = answer("config", "--gin_file=run.gin")
    assert (macro(printed, "BATCH_SIZE"), macro(printed, "TRAIN_STEPS")) == ("8", "3")


def test_a_name_of_two_files_is_refused(refusal, answer, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/pretrain.gin").write_text("BATCH_SIZE = 8\n")
    said = refusal("config", *RUN)
    assert said.startswith("--gin_file=runs/pretrain.gin means two files.") and "--gin_file=./runs/pretrain.gin" in said
    printed = answer("config", *SMALL[:1], f"--gin_file={config.root()}/runs/pretrain.gin", "--gin.TRAIN_STEPS=1",
                     "--gin_file=./runs/pretrain.gin")  # fmt: skip
    assert macro(printed, "BATCH_SIZE") == "8"


def test_own_configurables_are_found_in_the_working_directory(answer, tmp_path):
    (tmp_path / "own_schedule_of_a_test.py").write_text("def flat(value=1.0):\n    return lambda step: value\n")
    (tmp_path / "own.gin").write_text(
        DYNAMIC + "import own_schedule_of_a_test\nLEARNING_RATE = @own_schedule_of_a_test.flat()\n"
        "own_schedule_of_a_test.flat.value = 0.5\n"
    )
    printed = answer("config", *RUN, "--gin_file=own.gin")
    assert macro(printed, "LEARNING_RATE") == "@own_schedule_of_a_test.flat()"


# What is wrong with a line of file.gin -> what the error says; line numbers and the nearest names included.
WRONG_FILES = {
    "TRAIN_STEP = 3": r"^TRAIN_STEP is set in a gin file, but nothing reads it\. .* Nearest: TRAIN_STEPS",
    "BATCH_SIZE = 8\nTRAIN_STEPS = = 3": r"^file\.gin, line 2 cannot be read: TRAIN_STEPS = = 3\. .*Correct the line",
    "BATCH_SIZE = 8\n\nMODEL_DIR = /x/y":
        r"^file\.gin, line 3 cannot be read: MODEL_DIR = /x/y\. .*text stands in quotes",
    "BATCH_SIZE 8": r"^file\.gin, line 1 cannot be read: BATCH_SIZE 8\. ",
    "TASK_FEATURE_LENGTHS = {'inputs': 3,\n": r"^file\.gin, line \d cannot be read\. .*EOF",
    "include 'runs/pretrane.gin'": r"^include 'runs/pretrane\.gin' is not there\. .* Nearest: runs/pretrain\.gin",
    "include 'broken.gin'": r"^broken\.gin, line 2 cannot be read: TRAIN_STEPS = = 3\.",
    DYNAMIC + "from t5x_lite.model import archi\narchi.A.b = 1":
        r"^file\.gin, line 2 cannot be read: .*'t5x_lite\.model\.archi'",
    DYNAMIC + "from t5x_lite import job\njob.Job.batchsize = 3":
        r"^file\.gin, line 3: job\.Job has no parameter batchsize\. Nearest: batch_size",
    DYNAMIC + "from t5x_lite import job\njob.Jobb.batch_size = 3":
        r"^file\.gin, line 3: there is no job\.Jobb\. Nearest: job\.Job",
    "jobs.Job.batch_size = 3": r"^file\.gin, line 1: there is no jobs\.Job\. Nearest: job\.Job",
    DYNAMIC + "import module_that_breaks\nmodule_that_breaks.f.x = 1":
        r"^file\.gin, line 2 cannot be read: .* Out of cheese",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_mistake_in_a_file_is_named_with_its_line(text, refusal, tmp_path):
    (tmp_path / "file.gin").write_text(text + "\n")
    (tmp_path / "broken.gin").write_text("BATCH_SIZE = 8\nTRAIN_STEPS = = 3\n")
    (tmp_path / "module_that_breaks.py").write_text("raise RuntimeError('out of cheese')\n")
    said = refusal("config", *RUN, "--gin_file=file.gin")
    assert re.search(WRONG_FILES[text], said, re.IGNORECASE), said


def test_files_that_include_each_other_are_refused(refusal, tmp_path):
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    assert refusal("config", *RUN, "--gin_file=a.gin").startswith("a.gin includes itself. Through a.gin and b.gin.")


def test_a_file_that_is_no_text_is_refused(refusal, tmp_path):
    (tmp_path / "file.gin").write_bytes(b"\xff\xfe\x00")
    assert refusal("config", *RUN, "--gin_file=file.gin").startswith("file.gin cannot be read. 'utf-8'")


@pytest.mark.parametrize("flags, said", {
    ("config", *SMALL):
        r"^TRAIN_STEPS is not set\. Job\.train_steps and rsqrt\.total_steps need it, .* Give --gin\.TRAIN_STEPS=",
    ("config", SMALL[1]): r"^MODEL and TRAIN_STEPS are not set\. .*--gin_file=models/.* --gin\.TRAIN_STEPS=",
    ("config", SMALL[0]): r"^the gin files bind no Job\. .*--gin_file=runs/pretrain\.gin",
    ("train", *RUN): r"^MIXTURE_OR_TASK_NAME, MODEL_DIR and VOCABULARY are not set\. ",
    ("config", *RUN, "--gin.BATCH_SZE=3"):
        r"^--gin\.BATCH_SZE sets a macro that nothing reads\. .* Nearest: BATCH_SIZE",
    ("config", *RUN, "--gin_file=models/t5_1_1_smal.gin"): r"is not there\. .* Nearest: models/t5_1_1_small\.gin",
    ("config", *RUN, "--gin.job.Job.batchsize=3"):
        r"^--gin\.job\.Job\.batchsize=3: job\.Job has no parameter batchsize\.",
    ("config", *RUN, "--gin.schedule.rsqrt.warmup=3"): r"has no parameter warmup\. Nearest: warmup_steps",
    ("config", *RUN, "--gin.optimizers.adafactor.x=3"):
        r"there is no optimizers\.adafactor\. Nearest: optimizer\.adafactor",
    ("config", *RUN, "--gin.LEARNING_RATE=@schedule.rsqr()"): r"there is no schedule\.rsqr\. Nearest: schedule\.rsqrt",
    ("config", *RUN, "--gin.TASK_FEATURE_LENGTHS={'inputs': 3,"): r"^--gin\.TASK_FEATURE_LENGTHS=.* cannot be read\. ",
}.items())  # fmt: skip
def test_a_mistake_on_the_command_line_is_named(flags, said, refusal):
    text = refusal(*flags)
    assert re.search(said, text), text


# A value out of range of each field that has one; the error names the macro, the value and what it must be.
WRONG_VALUES = {
    "BATCH_SIZE": ["0", "-8", "2.5", "many", "True", "None"],
    "MICROBATCHES": ["0", "1.0"],
    "DATA_SHARDS": ["0", "half"],
    "LOG_PERIOD": ["0"],
    "EVAL_BATCHES": ["0"],
    "MAX_NONFINITE_STEPS": ["0"],
    "SAVE_PERIOD": ["-1", "often"],
    "EVAL_PERIOD": ["-1"],
    "RANDOM_SEED": ["-1", "0.5", "4294967296"],
    "TRAIN_STEPS": ["0", "1e4"],
    "KEEP_CHECKPOINTS": ["0", "all"],
    "Z_LOSS": ["-1e-4", "small", "1e999"],
    "LABEL_SMOOTHING": ["1", "-0.1", "a bit"],
    "LOSS_NORMALIZING_FACTOR": ["0", "-2", "tokens"],
    "PACK": ["maybe", "1"],
    "USE_CACHED_TASKS": ["1"],
    "INITIAL_OPTIMIZER_STATE": ["None"],
    "MODEL_DIR": ["''"],
    "TASK_FEATURE_LENGTHS": ["512", "{'inputs': 8}", "{'inputs': 8, 'targets': 1}", "{'inputs': 8, 'targets': 'x'}"],
    "MODEL": ["3"],
    "PARTITION": ["data"],
    "OPTIMIZER": ["adam", "@optimizer.adafactor"],
    "LEARNING_RATE": ["0.001"],
    "DROPOUT_RATE": ["1.0", "-0.1", "some"],
    "architecture.Architecture.num_heads": ["0", "True"],
    "architecture.Architecture.relative_buckets": ["2"],
    "architecture.Architecture.relative_max_distance": ["16"],
    "architecture.Architecture.norm_epsilon": ["0", "small"],
    "architecture.Architecture.dtype": ["float16"],
    "architecture.Architecture.scan_layers": ["2"],
    "architecture.Architecture.mlp_activations": ["gelu", "('tanh',)", "()"],
    "partition.Partition.mesh": ["8", "{'data': 0}", "{'data': -2}", "{'data': 'all'}"],
    "partition.Partition.rules": ["data"],
}


@pytest.mark.parametrize("name, value", [(n, v) for n, values in WRONG_VALUES.items() for v in values])
def test_a_value_out_of_range_is_refused(name, value, refusal):
    said = refusal("train", "--dry_run", *RUN, f"--gin.{name}={value}")
    assert re.match(rf"(Architecture\.)?{name.partition('.')[2] or name}(\[.*\])? is ", said, re.IGNORECASE), said
    assert f"--gin.{name}" in said


def test_the_bindings_of_one_job_do_not_reach_the_next(answer):
    """In one process, as in a test or a notebook."""
    assert macro(answer("config", *RUN, "--gin.BATCH_SIZE=8"), "BATCH_SIZE") == "8"
    assert macro(answer("config", *RUN), "BATCH_SIZE") == "128"


# A line of an untrusted file -> what is said of it.
HOSTILE = {
    "import os\nMODEL = @os.system()\nos.system.command = 'touch harmed'":
        r"config\.gin, line 2: import os is refused\. .* If you trust os, give --gin_file=F .* or --module",
    "from t5x_lite import config\nMODEL = @config.os.system()\nconfig.os.system.command = 'touch harmed'":
        r"line 2: from t5x_lite import config is refused",
    "from t5x_lite.tasks import vocabulary\nMODEL = @vocabulary.write()":
        r"from t5x_lite\.tasks import vocabulary is refused",
    "import harm": r"line 2: import harm is refused",
    "include 'sub.gin'": r"sub\.gin, line 1: import harm is refused",
    "from t5x_lite import job\nMODEL = @job.dataclasses.sys.exit()":
        r"config\.gin: MODEL = @job\.dataclasses\.sys\.exit is refused\. .* of the module sys\.",
    "from t5x_lite import job\nMODEL = @job.dataclasses.builtins.exec()": r"of the module builtins\.",
    "import t5x_lite.job\nMODEL = {'a': [@t5x_lite.config.gin.parse_config()]}": r"of the module gin\.config\.",
    "import t5x_lite.job\nMODEL = {@t5x_lite.config.os.system(): 1}": r"of the module (posix|nt)\.",
    "MIXTURE_OR_TASK_MODULE = 'harm'":
        r"MIXTURE_OR_TASK_MODULE=harm is refused\. .* give --gin\.MIXTURE_OR_TASK_MODULE=harm",
    "NAME = 'harm'\nfrom t5x_lite import job\njob.Job.mixture_or_task_module = %NAME":
        r"MIXTURE_OR_TASK_MODULE=harm is refused",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_an_untrusted_file_that_runs_what_it_may_not_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # not for the next test to find our module
    Path("harm.py").write_text("open('harmed', 'w').close()")
    Path("sub.gin").write_text("import harm\n")
    Path("config.gin").write_text(DYNAMIC + text + "\n")
    with pytest.raises(UserError, match=HOSTILE[text]):
        config.load([*SMALL_FILES, "config.gin"], optional=job.NOT_TRAINING, untrusted=["config.gin"])
    assert "harm" not in sys.modules and not Path("harmed").exists()


@pytest.mark.parametrize("module", ["model.harm", "around.model.harm"])
def test_a_module_of_tasks_in_the_model_directory_is_refused(module, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "around/model"
    folder.mkdir(parents=True)
    (folder / "harm.py").touch()
    monkeypatch.chdir(tmp_path if module.startswith("around") else tmp_path / "around")
    files = [*SMALL_FILES, str(folder / "config.gin")]
    (folder / "config.gin").write_text(f"MIXTURE_OR_TASK_MODULE = '{module}'\n")
    with pytest.raises(UserError, match=f"MIXTURE_OR_TASK_MODULE={module} is refused"):
        config.load(files, optional=job.NOT_TRAINING, untrusted=files[-1:])
    config.load(files, [f"MIXTURE_OR_TASK_MODULE={module}"], optional=job.NOT_TRAINING, untrusted=files[-1:])


def test_an_untrusted_file_may_use_what_the_users_files_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_rates_of_a_test.py").write_text("def flat(value=1.0):\n    return lambda step: value\n")
    Path("own.gin").write_text("import own_rates_of_a_test\n")
    Path("around.gin").write_text("include 'own.gin'\n")
    (tmp_path / "model").mkdir()
    config.load(SMALL_FILES, optional=job.NOT_TRAINING)
    text = config.resolved().replace("LEARNING_RATE = @schedule.rsqrt()", "LEARNING_RATE = @own_rates_of_a_test.flat()")
    Path("model/config.gin").write_text(
        text.replace("from t5x_lite import job\n", "import own_rates_of_a_test\nfrom t5x_lite import job\n")
        + "\nMIXTURE_OR_TASK_MODULE = 'own_rates_of_a_test'\n"
    )
    load = lambda *files, flags=(): config.load(  # noqa: E731
        ["model/config.gin", *files], flags, optional=job.NOT_TRAINING, untrusted=["model/config.gin"]
    )
    with pytest.raises(UserError, match="import own_rates_of_a_test is refused"):
        load()
    for make in (
        load("own.gin"), load("around.gin"), load(flags=["MIXTURE_OR_TASK_MODULE=own_rates_of_a_test"]),
    ):  # fmt: skip
        assert config.build(make).learning_rate(3) == 1.0


def test_what_the_users_files_refer_to_is_not_held_against_an_untrusted_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_import_of_a_test.py").write_text("from functools import lru_cache\n")
    Path("own.gin").write_text(DYNAMIC + "import own_import_of_a_test\nMODEL = @own_import_of_a_test.lru_cache\n")
    Path("config.gin").write_text("BATCH_SIZE = 8\n")
    for files in itertools.permutations(["config.gin", "own.gin"]):
        config.load([*SMALL_FILES, *files], optional=job.NOT_TRAINING, untrusted=["config.gin"])
    Path("config.gin").write_text(Path("own.gin").read_text())
    with pytest.raises(UserError, match="MODEL = @own_import_of_a_test.lru_cache is refused"):
        config.load([*SMALL_FILES, "own.gin", "config.gin"], optional=job.NOT_TRAINING, untrusted=["config.gin"])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_is_harmless(name):
    files = [*SMALL_FILES, name]
    config.load(files, optional=job.NOT_TRAINING, untrusted=files)


def test_the_working_directory_comes_last_on_the_path(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = list(sys.path)
    answer("config", *RUN)
    answer("config", *RUN)
    assert sys.path == [*before, str(tmp_path)]


def test_examples_open_with_their_command():
    for path in (config.root() / "examples").glob("*.gin"):
        head = Path(path).read_text().split("from __gin__")[0]
        assert f"t5x_lite train --gin_file=examples/{path.name}" in head and "Expected" in head
