"""gin: the one module that imports it.

Library code never imports gin: gin files name the code by dynamic registration,
and a verb receives its objects from `load`. Four traps of gin-config 0.5 are
closed here: a misspelt macro is accepted silently, an unset macro gives a bare
Python error, an unquoted string is a SyntaxError, and a folder in the working
directory that is called like one of ours captures `include`.
"""

import ast
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import gin
from t5x_lite.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parent

# Macros whose value is text: `--gin.DATA_GLOB=2024` means the string.
_TEXT_MACROS = frozenset({
    "MODEL_DIR", "MIXTURE_OR_TASK_NAME", "MIXTURE_OR_TASK_MODULE", "DATA_GLOB", "VALIDATION_GLOB", "DATA_DIR",
    "VOCABULARY", "INITIAL_CHECKPOINT_PATH",
})  # fmt: skip


def root() -> Path:
    """The folder of the shipped gin files: t5x_lite/configs in a wheel, gin/ in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "gin"


def find(name: str) -> str:
    """The path of a gin file given as a path or as a name under the gin root.

    Raises:
      UserError: there is none, or the name means two different files.
    """
    here, shipped = Path(name), root() / name
    if here.is_file() and shipped.is_file() and not here.is_absolute() and not name.startswith("."):
        if not os.path.samefile(here, shipped):
            raise UserError(
                f"--gin_file={name} means two files",
                f"it is in the working directory and among the shipped files ({shipped})",
                f"write --gin_file=./{name} or the full path",
            )
    for path in (here, shipped):
        if path.is_file():
            return str(path)
    known = [str(p.relative_to(root())) for p in root().rglob("*.gin")]
    raise UserError(
        f"--gin_file={name} is not there",
        f"neither a path from {os.getcwd()} nor a name under {root()}",
        nearest(name, known),
    )


def _quoted(value: str) -> str:
    """`value` as gin syntax: kept where it is a literal or a reference, quoted where it is bare text."""
    if value[:1] in "@%" and re.fullmatch(r"[@%][\w./]+(\(\))?", value):
        return value
    try:
        ast.literal_eval(value)
        return value
    except (SyntaxError, ValueError):
        # A list or a call may hold references that only gin can read.
        return value if value[:1] in "[({" else repr(value)


def _binding(text: str) -> str:
    """A `NAME=value` from the command line as a gin statement."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not re.fullmatch(r"[A-Za-z_][\w./]*", name):
        raise UserError(f"--gin.{text} is no binding", "it is not of the form NAME=value", "write --gin.NAME=value")
    value = value.strip()
    if name in _TEXT_MACROS and value != "None" and value[:1] not in "'\"%@":
        return f"{name} = {value!r}"
    return f"{name} = {_quoted(value)}"


def _flatten(value) -> Iterable:
    if isinstance(value, dict):
        for pair in value.items():
            for part in pair:
                yield from _flatten(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _flatten(part)
    else:
        yield value


def _references() -> dict[str, list[str]]:
    """Each macro that something in the parsed configuration refers to, and by whom."""
    used: dict[str, list[str]] = {}
    # gin offers no public walk over what it has parsed.
    for (scope, selector), bindings in gin.config._CONFIG.items():
        for parameter, value in bindings.items():
            for part in _flatten(value):
                if isinstance(part, gin.config.ConfigurableReference) and part.selector == "gin.macro":
                    owner = scope if selector == "gin.macro" else f"{selector.split('.')[-1]}.{parameter}"
                    used.setdefault("/".join(part.scopes), []).append(owner)
    return used


def _macros() -> dict[str, object]:
    return {
        scope: bindings.get("value")
        for (scope, selector), bindings in gin.config._CONFIG.items()
        if selector == "gin.macro"
    }


def _is_required(value) -> bool:
    return isinstance(value, gin.config.ConfigurableReference) and value.config_key[0] == "gin.REQUIRED"


def _check_macros(given: Iterable[str], ever_used: set[str], optional: frozenset[str]) -> None:
    """Refuses macros that nothing reads and macros that are read but never set.

    A macro in `optional` that is unset becomes None, for a verb that has no use for it. One that was read
    until a later binding took the place of its reader (`ever_used`) is no mistake.
    """
    used, macros = _references(), _macros()
    for name in given:
        if name not in used:
            raise UserError(
                f"--gin.{name} sets a macro that nothing reads",
                "no gin file of this job refers to it, so it would change nothing",
                nearest(name, used),
            )
    for name in macros:
        if name not in ever_used:
            raise UserError(
                f"{name} is set in a gin file, but nothing reads it",
                "no binding refers to this macro, so it would change nothing",
                f"Remove it or correct the name. {nearest(name, used)}",
            )
    unset = [n for n in used if n not in macros or _is_required(macros[n])]
    for name in unset:
        if name in optional:
            gin.bind_parameter(f"{name}/gin.macro.value", None)
        else:
            raise UserError(
                f"{name} is not set",
                f"it is read by {', '.join(sorted(set(used[name])))} and has no default",
                f"Give it a value with --gin.{name}=... or in a gin file",
            )


def _parse(text: str, where: str) -> None:
    try:
        gin.parse_config(text)
    except UserError:
        raise
    except (SyntaxError, ValueError, AttributeError, ImportError, OSError, TypeError, KeyError, NameError) as error:
        raise _explained(error, where) from error


def _explained(error: Exception, where: str) -> UserError:
    text = " ".join(str(error).split())
    unknown = re.search(r"'?([\w.]+)'? (?:doesn't have|has no) (?:a )?(?:parameter|attribute) (?:named )?'(\w+)'", text)
    if unknown:
        return UserError(f"{where}: {unknown[1]} has no parameter {unknown[2]}", text, "correct the name")
    return UserError(
        f"{where} cannot be read", f"{type(error).__name__}: {text}", "correct this line of the gin file or flag"
    )


def load(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    configured: str = "t5x_lite.job.Job",
    optional: Iterable[str] = (),
) -> Callable:
    """Parses gin files, then command-line bindings, and returns `configured` with its bindings applied.

    Args:
      files: paths, or names under the gin root, in order: later ones win.
      bindings: `NAME=value` as given after `--gin.`; text needs no quotes.
      configured: dotted name of the function or class to return.
      optional: macros that may stay unset; they read as None.

    Returns:
      The configured callable.

    Raises:
      UserError: a file is missing or unreadable, a macro is misspelt or unset.
    """
    if not files:
        raise UserError(
            "no --gin_file is given",
            "a job is described by gin files",
            "try --gin_file=examples/demo.gin, or a model and a run: "
            "--gin_file=models/t5_1_1_small.gin --gin_file=runs/pretrain.gin",
        )
    gin.clear_config()
    # The shipped files come before the working directory, whose folders may be called like ours.
    gin.config._LOCATION_PREFIXES[:] = [str(root()), ""]
    # User modules that a gin file imports may lie in the working directory.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    statements = [_binding(b) for b in bindings]
    ever_used: set[str] = set()
    with gin.unlock_config():
        for name in files:
            path = find(name)
            _parse(Path(path).read_text(encoding="utf-8"), path)
            ever_used.update(_references())
        given = [s.split(" = ")[0] for s in statements]
        for statement in statements:
            _parse(statement, f"--gin.{statement.replace(' = ', '=', 1)}")
            ever_used.update(_references())
        _check_macros([n for n in given if "." not in n and "/" not in n], ever_used, frozenset(optional))
    module, _, attribute = configured.rpartition(".")
    return gin.get_configurable(getattr(__import__(module, fromlist=[attribute]), attribute))


def build(make: Callable, **arguments):
    """Calls a configured function; a missing or mistyped argument becomes a UserError."""
    try:
        return make(**arguments)
    except UserError as error:
        # gin appends its chain of calls to the message of whatever is raised below it.
        raise UserError.from_text(str(error).partition("\n  In call to configurable")[0]) from error
    except TypeError as error:
        raise _explained(error, "the configuration") from error


def resolved() -> str:
    """The configuration as gin text that can be run again as it is."""
    return gin.config_str(max_line_length=100)
