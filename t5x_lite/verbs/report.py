"""t5x_lite report: a model directory as one self-contained HTML page.

No network, no script: it can be mailed, printed and read in ten years. Everything
that comes from a file is escaped.
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from etils import epath

from t5x_lite import output
from t5x_lite.errors import UserError
from t5x_lite.train import checkpoint
from t5x_lite.train.metrics import JSONL, read_jsonl
from t5x_lite.verbs.page import page
from t5x_lite.verbs.report_chart import Series, chart, number

PAGE = "report.html"
# A long run has more evaluations and samples than a page should hold; it says so.
_EVALUATIONS, _SAMPLES = 60, 20


def main(args) -> None:
    """The verb."""
    print(write(epath.Path(args.model_dir)))


def write(directory: epath.Path) -> epath.Path:
    """Writes MODEL_DIR/report.html and returns its path.

    Raises:
      UserError: this is no model directory, nothing has been logged in it, or a file of it is damaged.
      RunError: the page cannot be written.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no model directory", "there is no such folder", "give the MODEL_DIR of a run")
    train = read_jsonl(directory / JSONL)
    if not train:
        raise UserError(
            f"{directory} has nothing to report",
            f"it holds no {JSONL} with a line in it, which a run writes at its first LOG_PERIOD",
            "give the MODEL_DIR of a run",
        )
    config = directory / "config.gin"
    page = render(
        name=directory.name,
        train=train,
        evaluations=read_jsonl(directory / "eval" / "results.jsonl"),
        samples=read_jsonl(directory / "eval" / "samples.jsonl"),
        checkpoints=checkpoint.steps(str(directory)),
        config=config.read_text() if config.exists() else "",
        done=(directory / "DONE").exists(),
    )
    path = directory / PAGE
    output.write_text(path, page, "the run itself is unchanged")
    return path


def render(
    name: str,
    train: Sequence[Mapping],
    evaluations: Sequence[Mapping],
    samples: Sequence[Mapping],
    checkpoints: Sequence[int],
    config: str,
    done: bool,
) -> str:
    """The page.

    Args:
      name: of the run.
      train: lines of metrics.jsonl.
      evaluations: lines of eval/results.jsonl.
      samples: lines of eval/samples.jsonl.
      checkpoints: steps.
      config: the resolved gin configuration.
      done: the run has reached its last step.
    """
    parts = (
        f'<dl class="headline">{_headline(train, evaluations, config)}</dl>',
        f'<section class="charts">{_charts(train, evaluations)}</section>',
        _evaluations(evaluations),
        _samples(samples),
        _checkpoints(checkpoints),
        f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>" if config else "",
    )
    return page(name, "finished" if done else "not finished", "\n".join(parts))


def _headline(train: Sequence[Mapping], evaluations: Sequence[Mapping], config: str) -> str:
    last = train[-1]
    of = re.search(r"^TRAIN_STEPS = (\d+)$", config, re.MULTILINE)
    figures = [
        ("step", number(last["step"]), f"of {int(of[1]):,}" if of else ""),
        ("training loss", number(last.get("loss")), "nats a target token"),
    ]
    for line in _newest(evaluations):
        of_task = f"{line.get('task', '')}, step {number(line.get('step'))}"
        if "loss" in line:
            figures.append((f"{line.get('split', 'evaluation')} loss", number(line["loss"]), of_task))
        for key, level in _baselines(line):
            measured = next((k for k in line if k.endswith("_loss") and k != key), None)
            if measured:
                versus = f"against {number(level)} of the {_words(key)}"
                figures.append((_words(measured), number(line[measured]), versus))
    speed = [line["tokens_per_second"] for line in train if line.get("tokens_per_second")]
    mfu = [line["mfu"] for line in train if line.get("mfu")]
    figures.append(("tokens seen", number(last.get("tokens_seen")), "padding included"))
    if speed:
        figures.append(("tokens a second", number(round(statistics.median(speed))), "median"))
    if mfu:
        figures.append(("MFU", f"{100 * statistics.median(mfu):.1f} %", "median"))
    if last.get("nonfinite_steps"):
        figures.append(("skipped steps", number(last["nonfinite_steps"]), "loss or gradient not finite"))
    return "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for what, value, note in figures
    )


def _newest(evaluations: Sequence[Mapping]) -> list[Mapping]:
    """The last line of each task and split, lines with a baseline apart."""
    found = {(e.get("task"), e.get("split"), "loss" in e): e for e in evaluations}
    return list(found.values())


def _baselines(line: Mapping) -> list[tuple[str, float]]:
    return [(k, v) for k, v in line.items() if k.startswith("baseline") and isinstance(v, int | float)]


def _words(key: str) -> str:
    return key.replace("_", " ").strip()


def _charts(train: Sequence[Mapping], evaluations: Sequence[Mapping]) -> str:
    def logged(key: str, name: str) -> Series:
        return Series(name, [(line["step"], line.get(key)) for line in train])

    def evaluated(key: str) -> list[Series]:
        curves: dict[str, dict[int, float]] = {}
        for e in evaluations:
            if isinstance(e.get(key), int | float) and "step" in e:
                # A step that was evaluated twice counts as it was last.
                name = f"{e.get('task', '')} {e.get('split', '')}".strip() + (f", {_words(key)}" if "_" in key else "")
                curves.setdefault(name, {})[e["step"]] = e[key]
        return [Series(name, sorted(points.items())) for name, points in curves.items()]

    levels = dict(pair for e in evaluations for pair in _baselines(e))
    by_step = "step"
    charts = [
        chart(
            "Loss", [logged("loss", "training"), *evaluated("loss"), *evaluated("non_sentinel_loss")], by_step,
            "nats a target token", [(_words(k), v) for k, v in levels.items()],
        ),
        chart("Accuracy", [logged("accuracy", "training"), *evaluated("accuracy")], by_step, "share of target tokens"),
        chart("Learning rate", [logged("learning_rate", "learning rate")], by_step, "rate", zero=True),
        chart("Gradient norm", [logged("grad_norm", "gradient norm")], by_step, "norm", log=True),
        chart("Throughput", [logged("tokens_per_second", "tokens")], by_step, "tokens a second", zero=True),
        chart("MFU", [logged("mfu", "MFU")], by_step, "share of peak", zero=True),
        chart("Waiting for input", [logged("input_wait_fraction", "waiting")], by_step, "share of the time", zero=True),
    ]  # fmt: skip
    return "".join(charts)


def _evaluations(evaluations: Sequence[Mapping]) -> str:
    if not evaluations:
        return ""
    newest = sorted(evaluations, key=lambda e: e.get("step", 0))[-_EVALUATIONS:]
    first = ["step", "task", "split"]
    # Texts of several lines, which metric functions may give, would burst the table.
    fitting = (k for e in newest for k, v in e.items() if not (isinstance(v, str) and "\n" in v))
    keys = first + [k for k in dict.fromkeys(fitting) if k not in first]
    head = "".join(f"<th>{escape(_words(k))}</th>" for k in keys)
    rows = "".join("<tr>" + "".join(_cell(e.get(k, "")) for k in keys) + "</tr>" for e in reversed(newest))
    left = len(evaluations) - len(newest)
    note = f"<p>{left:,} earlier ones are in eval/results.jsonl.</p>" if left else ""
    return (
        f'<section><h2>Evaluations</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}</section>"
    )


def _cell(value) -> str:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return f'<td class="number">{number(value)}</td>'
    return f"<td>{escape(value if isinstance(value, str) else json.dumps(value))}</td>"


def _samples(samples: Sequence[Mapping]) -> str:
    if not samples:
        return ""
    shown = "".join(
        '<dl class="sample">'
        + "".join(f"<dt>{k}</dt><dd>{marked(str(s.get(k, '')))}</dd>" for k in ("inputs", "targets", "prediction"))
        + "</dl>"
        for s in samples[:_SAMPLES]
    )
    left = len(samples) - _SAMPLES
    note = f"<p>{left:,} more are in eval/samples.jsonl.</p>" if left > 0 else ""
    return f"<section><h2>Samples</h2>{shown}{note}</section>"


def marked(text: str) -> str:
    """Escaped text with its sentinels highlighted, each number in a colour of its own."""
    return re.sub(
        r"&lt;extra_id_(\d+)&gt;",
        lambda m: f'<mark class="m{int(m[1]) % 6}">{m[1]}</mark>',
        escape(text),
    )


def _checkpoints(steps: Sequence[int]) -> str:
    held = ", ".join(f"{s:,}" for s in steps) or "none"
    return f"<section><h2>Checkpoints</h2><p>{'Steps ' if steps else ''}{held}</p></section>"
