"""t5x_lite tasks list: every task and mixture by name, and on a terminal what each of them is."""

import functools
import re
import shutil
import sys
from collections.abc import Callable

from t5x_lite.verbs import tasks

# Shipped tasks by the beginning of their names; the rest is pretraining.
_GROUPS = {
    "GLUE": r"glue_",
    "SuperGLUE": r"super_glue_|dpr_|wsc_",
    "Question answering": r"squad_|trivia_?qa_|nq_|natural_questions_",
    "Summarization": r"cnn_dailymail_|xsum_",
    "Translation": r"wmt",
}

_HEADS = ("name", "source", "features", "metrics", "splits", "data")

# The least width that a column is cut to, and the columns that a narrow terminal goes without, in this order.
_NARROW = 8
_LEFT_OUT = (2, 4, 3, 1)


def main(args) -> None:
    """The verb: one full name a line or, on a terminal, a table of its width."""
    data = tasks.load(args)
    # Many tasks read one source, which may be far away.
    where = functools.cache(functools.partial(tasks.source_of, data_dir=data.data_dir))
    groups = grouped(*tasks.registered(data), where)
    if not sys.stdout.isatty():
        for name in (name for names in groups.values() for name in names):
            print(name)
        return
    rows = {name: described(name, where) for names in groups.values() for name in names}
    widths = fitted([_HEADS, *rows.values()], shutil.get_terminal_size().columns)
    print(_line(_HEADS, widths))
    for title, names in groups.items():
        print(f"\n{title}")
        for name in names:
            print(_line(rows[name], widths))


def grouped(shipped: set[str], own: set[str], where: Callable) -> dict[str, list[str]]:
    """The names of each group that has any: pretraining by source, downstream families, mixtures, the user's own.

    Args:
      shipped, own: names.
      where: `tasks.source_of`.
    """
    import seqio

    mixtures = shipped & set(seqio.MixtureRegistry.names())
    families: dict[str, list[str]] = {title: [] for title in _GROUPS}
    pretraining: dict[str, list[str]] = {}
    for name in sorted(shipped - mixtures):
        title = next((title for title, start in _GROUPS.items() if re.match(start, name)), None)
        if title is None:
            source, _ = where(seqio.TaskRegistry.get(name).source)
            pretraining.setdefault(f"Pretraining on {source}", []).append(name)
        else:
            families[title].append(name)
    groups = pretraining | families | {"Mixtures": sorted(mixtures), "Your own": sorted(own)}
    return {title: names for title, names in groups.items() if names}


def described(name: str, where: Callable) -> tuple[str, ...]:
    """The row of a task or mixture: name, source, features, metrics, splits, and whether its data is there."""
    import seqio

    provider = seqio.get_mixture_or_task(name)
    features = ", ".join(provider.output_features)
    if isinstance(provider, seqio.Mixture):
        found = [where(task.source)[1] for task in provider.tasks]
        there = found[0] if len(set(found)) == 1 else f"{found.count('yes')} of {len(found)}"
        return name, f"{len(found)} tasks", features, "", "", there
    source, there = where(provider.source)
    return name, source, features, ", ".join(_metrics(provider)), ", ".join(_splits(provider)), there


def _metrics(task) -> list[str]:
    import seqio

    try:
        return [seqio.utils.function_name(function) for function in task.metric_fns]
    except ValueError:  # a function of the user's own with other arguments
        return ["?"]


def _splits(task) -> list[str]:
    try:
        return list(task.splits)
    except Exception:
        # TFDS has a dozen ways to say that it does not find a data set whose splits are not named.
        return ["?"]


def fitted(rows: list[tuple[str, ...]], width: int) -> list[int]:
    """Widths of columns that fit a line. Names stay whole: the widest others are cut, then left out, with width 0."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    left_out = iter(_LEFT_OUT)
    while sum(widths) + 2 * (sum(w > 0 for w in widths) - 1) > width:
        if cut := [i for i in range(1, len(widths)) if widths[i] > _NARROW]:
            widths[max(cut, key=lambda i: widths[i])] -= 1
        elif (last := next(left_out, None)) is not None:
            gone = _LEFT_OUT[: _LEFT_OUT.index(last) + 1]
            widths = [0 if i in gone else max(map(len, column)) for i, column in enumerate(zip(*rows))]
        else:
            break
    return widths


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    shown = [(cell, width) for cell, width in zip(cells, widths) if width]
    fits = (cell if len(cell) <= width else cell[: width - 1] + "…" for cell, width in shown)
    return "  ".join(cell.ljust(width) for cell, (_, width) in zip(fits, shown)).rstrip()
