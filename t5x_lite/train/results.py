"""Evaluations read back from results.jsonl: what counts of a line, the best step, a table over the steps.

A task counts with its headline: `score`, which a task of GLUE or SuperGLUE with two metrics has, ROUGE-2 of summaries,
else the first of its own metrics (all as in the T5 paper), or its loss where it has none. A step counts with the mean
over its tasks (the rule of t5's `metric_group_max`, without its list of metrics).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

Line = Mapping[str, object]

# What a line of results says about itself; all else is of the task's own metric functions.
SETTING = ("split", "decode", "num_examples", "lengths", "overrides")
RESERVED = ("step", "committed", "task", "loss", "accuracy", "tokens", "checkpoints", "incomplete", *SETTING)


# Words of the names of metrics that are better when lower; seqio's metric functions do not say.
_LOWER = frozenset(
    "loss nll perplexity ppl edit edits distance error errors wer cer ter mae mse rmse brier bpb bpc".split()
)


def is_lower_better(metric: str) -> bool:
    """Whether a lower value of a metric is the better one, by the words of its name, as `mean_edit` or `wer`."""
    return not _LOWER.isdisjoint(re.split("[^a-z]+", metric.lower()))


def setting(line: Line) -> tuple:
    """What lines must have in common to be compared. Those that training writes have a split alone."""
    return tuple(line.get(name) for name in SETTING)


def key(line: Line) -> tuple:
    """What a line is the evaluation of; of two with one key the later counts."""
    return (line["step"], line["task"], *setting(line))


def is_evaluation(line: Line) -> bool:
    """Whether it is of a task, all of it, and neither an average over several nor of something else."""
    return "loss" in line and not line.get("incomplete")


def headline(line: Line) -> tuple[str, float | None]:
    """Name and value of the number that stands for a task; None where it is not finite."""
    own = [name for name, value in line.items() if name not in RESERVED and not isinstance(value, str | bool)]
    name = next((name for name in ("score", "rouge2", *own) if name in own), "loss")
    return name, _number(line.get(name))


def _number(value) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


@dataclasses.dataclass(frozen=True)
class Row:
    """The evaluations of one step under one setting.

    Args:
      step: of the checkpoint.
      headlines: (task, metric) -> value.
      averages: of benchmarks.
      mean: over the headlines; over losses only where no task has a metric. None where one is not finite.
      lower: all that it is over are better when lower, and so is it; where only some are, they count negatively.
    """

    step: int
    headlines: Mapping[tuple[str, str], float | None]
    averages: Mapping[tuple[str, str], float | None]
    mean: float | None
    lower: bool


def rows(lines: Iterable[Line]) -> list[Row]:
    """A row for each step, ascending, of lines of one setting."""
    newest: dict[tuple, Line] = {}
    for line in lines:
        # An evaluation that was broken off takes nothing away from one that was not.
        if not line.get("incomplete") or newest.get(key(line), line).get("incomplete"):
            newest[key(line)] = line
    by_step: dict[int, list[Line]] = {}
    for line in newest.values():
        by_step.setdefault(line["step"], []).append(line)
    return [_row(step, by_step[step]) for step in sorted(by_step)]


def _row(step: int, lines: Sequence[Line]) -> Row:
    def named(chosen: Iterable[Line]) -> dict[tuple[str, str], float | None]:
        found = ((line["task"], *headline(line)) for line in chosen)
        return {(task, metric): value for task, metric, value in found}

    headlines = named(line for line in lines if is_evaluation(line))
    averages = named(line for line in lines if not is_evaluation(line) and "score" in line)
    scores = {name: value for name, value in headlines.items() if name[1] != "loss"} or headlines
    is_lower = {name: is_lower_better(name[1]) for name in scores}
    lower, mean = all(is_lower.values()), None
    if scores and None not in scores.values():
        mean = sum(v if is_lower[name] == lower else -v for name, v in scores.items()) / len(scores)
    return Row(step, headlines, averages, mean, lower)


def best(rows: Sequence[Row]) -> Row | None:
    """The row with the best mean; the first of equals.

    Rows that lack a task of the others are left out.
    """
    most = max((len(row.headlines) for row in rows), default=0)
    whole = [row for row in rows if len(row.headlines) == most and row.mean is not None]
    return max(whole, key=lambda row: -row.mean if row.lower else row.mean, default=None)


def best_step(lines: Iterable[Line], steps: Sequence[int]) -> int | None:
    """The best of the steps, under the setting that most of them were evaluated under, the latest of several.

    Args:
      lines: of results.jsonl.
      steps: those that there are checkpoints of.

    Returns:
      None where none of them has been evaluated.
    """
    by_setting: dict[tuple, list[Line]] = {}
    for line in lines:
        if is_evaluation(line) and line["step"] in steps and "checkpoints" not in line:
            # What comes later moves to the end.
            by_setting[setting(line)] = [*by_setting.pop(setting(line), []), line]
    found = [rows(group) for group in by_setting.values()]
    row = best(max(reversed(found), key=len, default=[]))
    return None if row is None else row.step


def table(rows: Sequence[Row]) -> str:
    """The rows as text with aligned columns: step, headline of each task, averages, mean. Ends in a line end."""
    columns = list(dict.fromkeys(name for row in rows for name in [*row.headlines, *row.averages]))
    means = any(len(row.headlines) > 1 for row in rows)
    cells = [["step", *(task for task, _ in columns), *(["mean"] if means else [])]]
    cells.append(["", *(metric for _, metric in columns), *([""] if means else [])])
    for row in rows:
        values = [(row.headlines | row.averages).get(name, "") for name in columns] + [row.mean] * means
        cells.append([str(row.step), *map(_cell, values)])
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "".join("  ".join(map(str.rjust, line, widths)).rstrip() + "\n" for line in cells)


def _cell(value: float | str | None) -> str:
    return "nan" if value is None else value if isinstance(value, str) else f"{value:.3f}"
