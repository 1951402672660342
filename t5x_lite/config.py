"""gin: the one module that imports it.

Library code never imports gin: gin files name the code by dynamic registration,
and a verb receives its objects from `load`. Four traps of gin-config 0.5 are
closed here: a misspelt macro is accepted silently, an unset macro gives a bare
Python error, an unquoted string is a SyntaxError, and a folder in the working
directory that is called like one of ours captures `include`.

A gin file is a program: it imports modules and calls what it finds in them. One that
came with a model directory may have been written by others; `load` runs it only
within the limits below.
"""

import ast
import contextlib
import inspect
import os
import re
import sys
import tokenize
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import gin
from gin import config_parser
from t5x_lite import paths
from t5x_lite.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parent

# Macros whose value is text: `--gin.DATA_GLOB=2024` means the string.
_TEXT_MACROS = frozenset({
    "MODEL_DIR", "MIXTURE_OR_TASK_NAME", "MIXTURE_OR_TASK_MODULE", "DATA_GLOB", "VALIDATION_GLOB", "DATA_DIR",
    "VOCABULARY", "INITIAL_CHECKPOINT_PATH", "TASK_CACHE_DIR", "TOKENS_DIR",
})  # fmt: skip

# What a file that others wrote may import: what the shipped files do, and optax. None of it runs programs or writes
# files, as other parts of t5x_lite do.
_HARMLESS = frozenset({
    "__gin__", "optax", "t5x_lite.job", "t5x_lite.model.architecture", "t5x_lite.parallel.partition",
    "t5x_lite.train.optimizer", "t5x_lite.train.schedule",
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


def _included(name: str) -> str:
    """The path of an `include`: the shipped ones come before the working directory, whose folders may be
    called like ours."""
    for path in (root() / name, Path(name)):
        if path.is_file():
            return str(path)
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


def _is_macro(value) -> bool:
    return isinstance(value, gin.config.ConfigurableReference) and value.configurable.wrapped is gin.config.macro


def _all_references() -> Iterator[tuple[str, gin.config.ConfigurableReference]]:
    """Each @reference and %macro of the parsed configuration, and who refers to it."""
    # gin's own walk passes over the keys of dictionaries.
    for (scope, selector), bindings in gin.config._CONFIG.items():
        for parameter, value in bindings.items():
            owner = scope if selector == "gin.macro" else f"{selector.split('.')[-1]}.{parameter}"
            for part in _flatten(value):
                if isinstance(part, gin.config.ConfigurableReference):
                    yield owner, part


def _references() -> dict[str, list[str]]:
    """Each macro that something in the parsed configuration refers to, and by whom."""
    used: dict[str, list[str]] = {}
    for owner, reference in _all_references():
        if _is_macro(reference):
            used.setdefault("/".join(reference.scopes), []).append(owner)
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
    optional |= {name for name, other in _FOUND_BY.items() if macros.get(other)}
    for name in optional.intersection(unset):
        gin.bind_parameter(f"{name}/gin.macro.value", None)
    if missing := sorted(set(unset) - optional):
        readers = sorted({reader for name in missing for reader in used[name]})
        are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        need, have = ("needs", "has") if len(readers) == 1 else ("need", "have")
        raise UserError(
            f"{_listed(missing)} {are} not set",
            f"{_listed(readers)} {need} {them}, and {have} no default",
            "Give " + " ".join(_SETTERS.get(name, f"--gin.{name}=VALUE") for name in missing),
        )


def _forget_unread() -> None:
    """Drops macros whose reader is bound to something else now: what is printed sets none that nothing reads."""
    while unread := _macros().keys() - _references().keys():
        for name in unread:
            del gin.config._CONFIG[name, "gin.macro"]


# Macros that may stay unset where another is set, which tells them.
_FOUND_BY = {"VOCABULARY": "TOKENS_DIR"}
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


@contextlib.contextmanager
def _explaining(where: str) -> Iterator[None]:
    """Raises what gin finds wrong with a file or a flag as a UserError."""
    try:
        yield
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


class _Unresolved(config_parser.ParserDelegate):
    """Lets a file be read without looking for what it refers to."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return None

    def macro(self, macro_name):
        return None


def _statements(path: str, around: tuple[str, ...] = ()) -> Iterator:
    """gin's statements in a file and those that it includes. Imports and binds nothing.

    `around` are the files that include it.
    """
    if path in around:
        raise UserError(f"{path} includes itself", f"through {_listed(around)}", "take one include out of them")
    with _explaining(path), open(path, encoding="utf-8") as file:
        for statement in config_parser.ConfigParser(file, _Unresolved()):
            if isinstance(statement, config_parser.IncludeStatement):
                yield from _statements(_included(statement.filename), (*around, path))
            yield statement


def _may_import(files: Iterable[str], module: str) -> frozenset[str]:
    """The modules that the user's own files import and the one that --module names, beside the harmless ones.

    Of another package everything counts, whose functions may be defined anywhere in it; of this one, what is named.
    """
    named = {s.module for f in files for s in _statements(f) if isinstance(s, config_parser.ImportStatement)}
    named.update([module] if module else [])
    return _HARMLESS | {name if name.startswith("t5x_lite.") else name.partition(".")[0] for name in named}


def _is_of(module: str | None, modules: Iterable[str]) -> bool:
    return module is not None and any(module == m or module.startswith(f"{m}.") for m in modules)


def _check_imports(path: str, allowed: frozenset[str]) -> None:
    """Refuses an untrusted file before anything that it imports is."""
    for statement in _statements(path):
        if isinstance(statement, config_parser.ImportStatement) and not _is_of(statement.module, allowed):
            raise UserError(
                f"{statement.location.filename}, line {statement.location.line_num}: {statement.format()} is refused",
                "the file came with a model directory, and to import a module runs it",
                f"If you trust {statement.module}, give --gin_file=F with a file F that imports it, "
                "or --module if it registers the tasks",
            )


def _check_references(path: str, before: dict[int, object], allowed: frozenset[str]) -> None:
    """Refuses an untrusted file, just parsed, that reaches through a module into another: @job.dataclasses.sys.exit.

    Args:
      path: of the file.
      before: the references of the files before it, by their ids.
      allowed: modules whose functions it may refer to.
    """
    for owner, reference in _all_references():
        function = reference.configurable.wrapped
        if id(reference) not in before and function not in (gin.config.macro, gin.config._retrieve_constant):
            module = getattr(function, "__module__", None)
            if not _is_of(module, allowed):
                raise UserError(
                    f"{path}: {owner} = @{reference.selector} is refused",
                    f"the file came with a model directory, and that is of the module {module}",
                    "If you trust it, give --gin_file=F with a file F that imports that module",
                )


def _check_module(path: str, attribute: str) -> None:
    """Refuses an untrusted file that names as the module of tasks one that lies in its own folder."""
    for bindings in _bindings_of(attribute):
        holder, name = _held(bindings, "mixture_or_task_module")
        module, folder = holder.get(name), Path(path).resolve().parent
        if isinstance(module, str) and any(place.is_relative_to(folder) for place in paths.of_module(module)):
            raise UserError(
                f"{path}: MIXTURE_OR_TASK_MODULE={module} is refused",
                "the module lies in that model directory, and to import a module runs it",
                f"If you trust it, give --gin.MIXTURE_OR_TASK_MODULE={module}",
            )


def _bindings_of(attribute: str) -> list[dict]:
    """What the parsed files bind to parameters of the function or class that a verb asks for."""
    return [b for (_, selector), b in gin.config._CONFIG.items() if selector.split(".")[-1] == attribute]


def _held(bindings: dict, name: str) -> tuple[dict, str]:
    """Where the value of a binding stands: at the end of the macros that it refers to."""
    passed: set[str] = set()
    while _is_macro(value := bindings.get(name)) and (macro := "/".join(value.scopes)) not in passed:
        passed.add(macro)
        bindings, name = gin.config._CONFIG.get((macro, "gin.macro"), {}), "value"
    return bindings, name


# Parameters that name files, and what makes them mean the same from any working directory.
_PATHS = {
    "model_dir": paths.absolute,
    "data_glob": paths.absolute_globs,
    "validation_glob": paths.absolute_globs,
    "data_dir": paths.absolute,
    "task_cache_dir": paths.absolute,
    "tokens_dir": paths.absolute,
    "vocabulary": paths.absolute_vocabulary,
    "initial_checkpoint": paths.absolute,
}


def _make_paths_absolute(attribute: str) -> None:
    for bindings in _bindings_of(attribute):
        for parameter, absolute in _PATHS.items():
            holder, name = _held(bindings, parameter)
            # What is no text, or empty, is refused by what it is bound to.
            if isinstance(value := holder.get(name), str) and value:
                holder[name] = absolute(value)


def load(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    configured: str = "t5x_lite.job.Job",
    optional: Iterable[str] = (),
    untrusted: Collection[str] = (),
) -> Callable:
    """Parses gin files, then command-line bindings, and returns `configured` with its bindings applied.

    Local paths are made absolute, so that the configuration means the same from any working directory.

    An untrusted file may import only optax and the parts of t5x_lite that shipped files import, and what the other
    files import or the binding of MIXTURE_OR_TASK_MODULE (--module) names; it may refer only to what is defined
    there. The module of tasks that such a file itself names may be any that Python finds, for evaluating a task of
    the user's own needs no more than the model directory, and what lies elsewhere on the user's path is the user's;
    but none that lies in the folder of the file.

    Args:
      files: paths, or names under the gin root, in order: later ones win.
      bindings: `NAME=value` as given after `--gin.`; text needs no quotes.
      configured: dotted name of the function or class to return.
      optional: macros that may stay unset; they read as None.
      untrusted: those of `files` that others may have written.

    Returns:
      The configured callable.

    Raises:
      UserError: a file is missing or unreadable, a macro is misspelt or unset, or an untrusted file is not harmless.
    """
    if not files:
        raise UserError(
            "no --gin_file is given",
            "a job is described by gin files",
            "try --gin_file=examples/demo.gin, or a model and a run: "
            "--gin_file=models/t5_1_1_small.gin --gin_file=runs/pretrain.gin",
        )
    gin.clear_config()
    gin.config._FILE_READERS[:] = [(lambda name: open(_included(name), encoding="utf-8"), lambda name: True)]
    # Modules of the user's own may lie in the working directory; last, they take the place of no others.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    statements = [_binding(b) for b in bindings]
    given = dict(s.split(" = ", 1) for s in statements)
    own_module = given.get("MIXTURE_OR_TASK_MODULE", "").strip("'\"")
    found = [find(name) for name in files]
    suspects = [path for name, path in zip(files, found) if name in untrusted]
    allowed = _may_import([path for path in found if path not in suspects], own_module)
    module, _, attribute = configured.rpartition(".")
    ever_used: set[str] = set()
    with gin.unlock_config():
        for path in found:
            before = {id(reference): reference for _, reference in _all_references()}
            if path in suspects:
                _check_imports(path, allowed)
            with _explaining(path), open(path, encoding="utf-8") as file:
                gin.parse_config(file)
            if path in suspects:
                _check_references(path, before, allowed)
            ever_used.update(_references())
        for statement in statements:
            with _explaining(f"--gin.{statement.replace(' = ', '=', 1)}"):
                gin.parse_config(statement)
            ever_used.update(_references())
        _check_run(attribute)
        _check_macros([n for n in given if "." not in n and "/" not in n], ever_used, frozenset(optional))
        _forget_unread()
        for path in suspects if not own_module else ():
            _check_module(path, attribute)
        _make_paths_absolute(attribute)
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
