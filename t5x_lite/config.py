"""gin: the one module that imports it.

Library code never imports gin: gin files name the code by dynamic registration,
and a verb receives its objects from `load`. Four traps of gin-config 0.5 are
closed here: a misspelt macro is accepted silently, an unset macro gives a bare
Python error, an unquoted string is a SyntaxError, and a folder in the working
directory that is called like one of ours captures `include`.
"""

import ast
import inspect
import os
import re
import sys
import tokenize
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
    raise _not_there(f"--gin_file={name}", name)


def _not_there(what: str, name: str) -> UserError:
    known = [str(p.relative_to(root())) for p in root().rglob("*.gin")]
    return UserError(
        f"{what} is not there",
        f"neither a path from {os.getcwd()} nor a name under {root()}",
        nearest(name, known),
    )


def _open_included(name: str):
    """The file of an `include`: the shipped ones come before the working directory, whose folders may be
    called like ours."""
    for path in (root() / name, Path(name)):
        if path.is_file():
            return path.open(encoding="utf-8")
    raise _not_there(f"include '{name}'", name)


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
    if not value and name not in _TEXT_MACROS:
        raise UserError(f"--gin.{text} gives no value", "a binding is NAME=value", f"write --gin.{name}=value")
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
    for name in optional.intersection(unset):
        gin.bind_parameter(f"{name}/gin.macro.value", None)
    if missing := sorted(set(unset) - optional):
        readers = sorted({reader for name in missing for reader in used[name]})
        one = len(missing) == 1
        raise UserError(
            f"{_listed(missing)} {'is' if one else 'are'} not set",
            f"{_listed(readers)} {'needs it, and has' if one else 'need them, and have'} no default",
            "Give " + " ".join(_SETTERS.get(name, f"--gin.{name}=VALUE") for name in missing),
        )


# Macros that a whole file sets.
_SETTERS = {"MODEL": "--gin_file=models/t5_1_1_small.gin"}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _check_run(attribute: str) -> None:
    """Refuses gin files that bind nothing of what a verb asks for: a model without a run."""
    if not any(selector.split(".")[-1] == attribute for _, selector in gin.config._CONFIG):
        raise UserError(
            f"the gin files bind no {attribute}",
            "they may describe a model, but no run reads it",
            "Add a run: --gin_file=runs/pretrain.gin or --gin_file=runs/finetune.gin",
        )


def _parse(source, where: str) -> None:
    """Parses an open gin file, or the text of one flag."""
    try:
        gin.parse_config(source)
    except UserError as error:
        raise UserError.from_text(str(error).partition("\n  In ")[0]) from error
    except Exception as error:  # whatever the modules that a gin file imports raise
        raise _explained(error, where) from error


def _explained(error: Exception, where: str) -> UserError:
    """What gin raises about a line, as an error that names file, line and text."""
    reason, _, location = str(error).partition("\n  In ")
    file = line = text = None
    if isinstance(error, SyntaxError):
        file, line, text, reason = error.filename, error.lineno, error.text, error.msg
    elif isinstance(error, tokenize.TokenError):
        reason, (line, _) = error.args
    elif place := re.match(r'(?:file "(.*)",|bindings string) line (\d+)\n    (.*)', location):
        file, line, text = place.groups()
    is_flag = where.startswith("--")
    if not is_flag and line:
        where = f"{file or where}, line {line}"
    reason = " ".join(re.sub(r"<module '([\w.]+)'.*?>", r"\1", reason).split())

    if unknown := re.search(r"Configurable '(.+)' doesn't have a parameter named '(\w+)'", reason):
        return UserError(
            f"{where}: {unknown[1]} has no parameter {unknown[2]}",
            nearest(unknown[2], _parameters(unknown[1])),
            "correct the name",
        )
    if unknown := re.search(r"(?:No configurable matching (?:reference )?'@?|resolve selector )([\w.]+\w)", reason):
        return UserError(
            f"{where}: there is no {unknown[1]}",
            nearest(unknown[1], _configurables()),
            "correct the name, or import its module in a gin file",
        )
    hint = "; in a gin file text stands in quotes" if "parse value" in reason and not is_flag else ""
    return UserError(
        f"{where} cannot be read" + (f": {text.strip()}" if text and not is_flag else ""),
        reason,
        ("correct the flag" if is_flag else "correct the line") + hint,
    )


def _parameters(configurable: str) -> list[str]:
    return list(inspect.signature(gin.config._REGISTRY.get_match(configurable).wrapped).parameters)


def _configurables() -> list[str]:
    """What the parsed files can bind, as they write it: module.name."""
    names = [name for name, _ in gin.config._REGISTRY.items() if not name.startswith("gin.")]
    return [".".join(name.split(".")[-2:]) for name in names]


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
    gin.config._FILE_READERS[:] = [(_open_included, lambda path: True)]
    # User modules that a gin file imports may lie in the working directory.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    statements = [_binding(b) for b in bindings]
    ever_used: set[str] = set()
    with gin.unlock_config():
        for name in files:
            path = find(name)
            with open(path, encoding="utf-8") as file:
                _parse(file, path)
            ever_used.update(_references())
        module, _, attribute = configured.rpartition(".")
        given = [s.split(" = ")[0] for s in statements]
        for statement in statements:
            _parse(statement, f"--gin.{statement.replace(' = ', '=', 1)}")
            ever_used.update(_references())
        _check_run(attribute)
        _check_macros([n for n in given if "." not in n and "/" not in n], ever_used, frozenset(optional))
    return gin.get_configurable(getattr(__import__(module, fromlist=[attribute]), attribute))


def build(make: Callable, **arguments):
    """Calls a configured function.

    Raises:
      UserError: its own, or that a bound value is missing or of a wrong type.
    """
    try:
        return make(**arguments)
    except UserError as error:
        # gin appends its chain of calls to the message of whatever is raised below it.
        raise UserError.from_text(str(error).partition(_CALL)[0]) from error
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        reason, _, calls = str(error).partition(_CALL)
        name = calls.split("'")[1] if calls else "the job"
        raise UserError(
            f"{name} cannot be made from what gin binds to it",
            " ".join(reason.split()),
            f"correct the bindings of {name}: t5x_lite config prints them",
        ) from error


_CALL = "\n  In call to configurable"


def resolved() -> str:
    """The configuration as gin text that can be run again as it is."""
    return gin.config_str(max_line_length=100)
