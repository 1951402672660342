"""The demo corpus: English prose about programming, taken from what is installed anyway.

Documents are the docstrings of the standard library and of the packages that
t5x_lite needs, one document a module, and the topics of Python's own `help()`. The
source files are parsed, not imported. Only running prose is kept: paragraphs of
whole sentences, without code, doctests, tables, signatures and argument lists. The
text is a function of the installed versions alone, so a folder named after them
holds it, and it is built there on first use: nothing is downloaded and no text of
others is part of this project.
"""

import ast
import gzip
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from t5x_lite import cache
from t5x_lite.errors import UserError
from t5x_lite.tasks import vocabulary

# Import name -> distribution, whose version is part of the key of the cache.
_PACKAGES = {
    "absl": "absl-py", "flax": "flax", "jax": "jax", "keras": "keras", "numpy": "numpy", "optax": "optax",
    "orbax": "orbax-checkpoint", "scipy": "scipy", "seqio": "seqio", "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets", "tensorflow_text": "tensorflow-text",
}  # fmt: skip

# To be raised when the recipe below changes, for caches are kept by it.
_RECIPE = 1

# Pieces without sentinels. With fewer, common words of this text fall apart; with more, most rows of a small model's
# table would be trained on a handful of examples.
VOCABULARY_SIZE = 8000

_SHORTEST = 300  # characters of a document
_VALIDATION_SHARE = 20  # one document in so many

# Tests, and copies of other packages.
_LEFT_OUT = frozenset({"site-packages", "test", "tests", "testing", "idlelib", "lib2to3", "_vendor", "compat"})


def documents() -> Iterator[tuple[str, str]]:
    """(name, text) of every document, in a fixed order, no paragraph twice."""
    seen: set[str] = set()
    for name, docstrings in _raw():
        kept = []
        for paragraph in (p for docstring in docstrings for p in prose(docstring)):
            if paragraph not in seen:
                seen.add(paragraph)
                kept.append(paragraph)
        text = "\n".join(kept)
        if len(text) >= _SHORTEST:
            yield name, text


def _raw() -> Iterator[tuple[str, Iterable[str]]]:
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield f"topic {topic}", [topics[topic]]
    yield from _modules("python", Path(sysconfig.get_paths()["stdlib"]))
    for package in sorted(_PACKAGES):
        spec = importlib.util.find_spec(package)
        if spec is not None:
            yield from _modules(package, Path(next(iter(spec.submodule_search_locations))))


def _modules(package: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if _LEFT_OUT.isdisjoint(inside.parts) and not re.search(r"^test_|_test\.py$", path.name):
            yield f"{package}/{inside.as_posix()}", _docstrings(path)


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            # Of other people's escape sequences.
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        # Packages ship a few templates that are no Python.
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return [docstring for docstring in found if docstring]


def prose(docstring: str) -> list[str]:
    """The paragraphs of running English in a docstring, each on one line, without markup."""
    return [text for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)) if (text := _sentence(block))]


def _sentence(block: str) -> str | None:
    lines = block.splitlines()
    indents = {len(line) - len(line.lstrip()) for line in lines}
    # Argument lists, tables and code have more than one indentation, or a prompt.
    if len(indents) != 1 or re.search(r"^\s*(>>>|\.\. |[-*+#|=]|\d+\.\s)|::\s*$", block, re.MULTILINE):
        return None
    text = " ".join(block.split())
    text = re.sub(r":[a-z:]+:`~?([^`<]+?)(?: <[^>]*>)?`", r"\1", text)  # :func:`name`
    text = re.sub(r"`+([^`]+?)`+_{0,2}", r"\1", text)
    text = re.sub(r"\*\*?(\w[^*]*)\*\*?", r"\1", text)
    letters = sum(c.isalpha() or c == " " for c in text)
    whole = re.match(r"[A-Z]", text) and re.search(r"[.!?]$", text) and text.isascii()
    return text if whole and len(text.split()) >= 6 and letters >= 0.9 * len(text) else None


def build(directory: Path) -> None:
    """Writes train.jsonl.gz and validation.jsonl.gz, one document in 20 in the latter. Does nothing where both are.

    The files are the same byte for byte for the same installed versions, and each
    appears complete or not at all.
    """
    paths = {split: directory / f"{split}.jsonl.gz" for split in ("train", "validation")}
    if all(path.exists() for path in paths.values()):
        return
    lines = {split: [] for split in paths}
    for name, text in documents():
        held_out = hashlib.md5(name.encode()).digest()[0] * _VALIDATION_SHARE < 256
        lines["validation" if held_out else "train"].append(json.dumps({"name": name, "text": text}) + "\n")
    directory.mkdir(parents=True, exist_ok=True)
    for split, path in paths.items():
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as file:
            file.write("".join(lines[split]).encode())
        vocabulary.write(path, packed.getvalue())


def folder() -> Path:
    """Where the corpus of the installed versions is kept: in T5X_LITE_CACHE, by default ~/.cache/t5x_lite."""
    versions = {distribution: _version(distribution) for distribution in sorted(_PACKAGES.values())}
    recipe = json.dumps([_RECIPE, VOCABULARY_SIZE, platform.python_version(), versions])
    return cache.folder() / f"demo-{hashlib.md5(recipe.encode()).hexdigest()[:12]}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def ensure() -> Path:
    """The folder with the corpus and its vocabulary, built on first use (about half a minute).

    Raises:
      UserError: the cache cannot be written.
    """
    place = folder()
    model = place / "sentencepiece.model"
    if not model.exists():
        print(f"building the demo corpus and vocabulary in {place}, once", file=sys.stderr)
        try:
            build(place)
            vocabulary.train([str(place / "train.jsonl.gz")], VOCABULARY_SIZE, model)
        except OSError as error:
            raise UserError(
                f"the demo corpus cannot be written to {place}",
                str(error),
                "Set the environment variable T5X_LITE_CACHE",
            ) from error
    build(place)
    return place


def files(split: str) -> list[str]:
    """The file of a split, "train" or "validation", as a list."""
    return [str(ensure() / f"{split}.jsonl.gz")]


def vocabulary_path() -> Path:
    """The SentencePiece model of the demo. Loads no TensorFlow."""
    return ensure() / "sentencepiece.model"
