"""Every command of README.md and docs/ runs, in the order of the pages, in one directory with small data.

A reader's model has tens of millions of parameters and trains for days. Here each
`train` command gets a tiny shape and a few steps on top of what the page says; all
other flags are the page's own.
"""

import gzip
import json
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
import sentencepiece  # noqa: F401  (fails early where the environment lacks it)

from t5x_lite import cli
from t5x_lite.tasks import vocabulary

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "docs/pretrain_own_text.md",
    "docs/objectives.md",
    "docs/pretrain_c4.md",
    "docs/define_a_task.md",
    "docs/cache.md",
    "docs/finetune.md",
    "docs/architectures.md",
    "docs/downstream_tasks.md",
    "docs/evaluate.md",
    "docs/decoding.md",
    "docs/convert.md",
    "docs/tpu.md",
    "docs/multi_host.md",
    "docs/precompile.md",
    "docs/performance.md",
]

# tests/tpu/test_guide.py follows it.
GUIDE = "docs/launch_on_tpu.md"

TINY = [
    "architecture.Architecture.embed_dim=32",
    "architecture.Architecture.num_heads=2",
    "architecture.Architecture.head_dim=8",
    "architecture.Architecture.mlp_dim=32",
    "architecture.Architecture.encoder_layers=1",
    "architecture.Architecture.decoder_layers=1",
    "architecture.Architecture.vocab_size=512",
    "architecture.Architecture.dtype=float32",
    "BATCH_SIZE=8",
    "EVAL_BATCHES=1",
    "LOG_PERIOD=2",
    "DATA_SHARDS=2",
]
# Commands that other tests run: the packaging tests, make itself, and the benchmarks' own tests.
ELSEWHERE = ("make ", "pip ", "git ", "cd ", "t5x_lite demo", "t5x_lite bench", "t5x_lite precompile")


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def shortened(words: list[str]) -> list[str]:
    """The command at the size of a test."""
    if words[0] == "vocab":
        return [re.sub(r"--size=\d+", "--size=400", w) for w in words]
    if words[0] == "eval":
        return [w.replace("@12000", "@6") for w in words]
    if words[0] != "train" or "--dry_run" in words:
        return words
    steps = {"12000": "6", "1000": "4", "10000": "4", "1000000": "4"}
    words = [re.sub(r"(--gin\.TRAIN_STEPS=)(\d+)", lambda m: m[1] + steps[m[2]], w) for w in words]
    converted = any("runs/from_hf/" in w for w in words)
    tiny = [b for b in TINY if not (converted and b.startswith("arch"))]
    if any(re.search("models/.*_lm.gin", w) for w in words):  # a decoder alone
        tiny.remove("architecture.Architecture.encoder_layers=1")
    return words + [f"--gin.{b}" for b in tiny]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A directory with what the pages tell a reader to have."""
    home = tmp_path_factory.mktemp("reader")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(2000)]

    def documents(path: Path, count: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            for _ in range(count):
                file.write(json.dumps({"text": " ".join(rng.choices(words, k=120)) + "."}) + "\n")

    for split, count in (("train", 40), ("validation", 8)):
        documents(home / f"corpus/{split}-00000-of-00001.json.gz", count)
        documents(home / f"c4/en/c4-{split}.00000-of-00001.json.gz", count)
        lines = [f"land{i}\tcity{i}\n" for i in range(40)]
        (home / f"capitals_{split}.tsv").write_text("".join(lines))
    files = [str(home / "corpus/train-00000-of-00001.json.gz")]
    vocabulary.train(files, 400, home / "spiece.model")
    (home / "questions.txt").write_text("The <extra_id_0> walks.\nIt is <extra_id_0> .\n")
    (home / "pairs.jsonl").write_text(json.dumps({"inputs": "a b", "targets": "c"}) + "\n")
    for split in ("train", "val", "test"):
        rows = [
            {"question": f"is {word} a word", "passage": f"Words -- {word} is one.", "label": k % 2 == 0, "idx": k}
            for k, word in enumerate(words[:12])
        ]
        (home / "glue_data/BoolQ").mkdir(parents=True, exist_ok=True)
        (home / f"glue_data/BoolQ/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _huggingface(home)
    return home


def _huggingface(home: Path) -> None:
    """A Hugging Face directory with the test's vocabulary, made by our own writer from random parameters."""
    from t5x_lite.interop import huggingface, tokenizer
    from t5x_lite.model.architecture import Architecture
    from tests.interop import models

    sizes = {"vocab_size": 512, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 64}
    arch = Architecture(**sizes, encoder_layers=1, decoder_layers=1)
    params = {path: 0.1 * array for path, array in models.random(arch).items()}
    (home / "hf_t5").mkdir()
    huggingface.write(home / "hf_t5", models.model(arch, params))
    tokenizer.write(home / "hf_t5", str(home / "spiece.model"))


def test_every_command_of_the_pages_runs(reader, monkeypatch, capsys):
    monkeypatch.chdir(reader)
    for page in PAGES:
        for name, code in re.findall(r"```python title=(\S+)\n(.*?)```", (ROOT / page).read_text(), flags=re.S):
            (reader / name).write_text(code)
        for command in commands(page):
            if command.startswith(ELSEWHERE):
                continue
            words = shlex.split(command)
            assert words[0] == "t5x_lite", f"{page} has a command that no test runs: {command}"
            status = cli.run(shortened(words[1:]))
            assert status == 0, f"{page}: {command}\n{capsys.readouterr().err}"
    results = [json.loads(line) for line in (reader / "runs/capitals/eval/results.jsonl").read_text().splitlines()]
    assert "capitals/accuracy" in results[-1] or "accuracy" in results[-1]
    assert len((reader / "answers.jsonl").read_text().splitlines()) == 2
    assert json.loads((reader / "scores.jsonl").read_text())["score"] < 0
    assert (reader / "hf_again/model.safetensors").is_file()
    shutil.rmtree(reader / "runs")


@pytest.mark.parametrize("page", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "examples").glob("*/README.md")))
def test_every_command_of_the_examples_runs(page, tmp_path, monkeypatch, capsys):
    """In a copy of the example's folder, as they are."""
    folder = shutil.copytree((ROOT / page).parent, tmp_path / "copy")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for command in commands(page):
        words = shlex.split(command)
        assert words[0] == "t5x_lite"
        assert cli.run(words[1:]) == 0, f"{page}: {command}\n{capsys.readouterr().err}"


def test_all_pages_are_tested_and_linked():
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages | {"README.md"} == {*PAGES, GUIDE}
    readme = (ROOT / "README.md").read_text()
    for page in pages:
        assert f"({page})" in readme, f"README.md does not lead to {page}"


def test_pages_that_files_name_are_there():
    """Comments and messages lead to pages as docs/NAME.md; a page may be renamed."""
    for file in (
        path for folder in ("gin", "tasks", "t5x_lite", "tpu", "examples") for path in (ROOT / folder).rglob("*")
    ):
        if file.suffix in (".gin", ".py", ".md"):
            for page in re.findall(r"docs/\w+\.md", file.read_text(encoding="utf-8")):
                assert (ROOT / page).exists(), f"{file.relative_to(ROOT)} names {page}, which is not there"
