"""What precompile finds as one self-contained HTML page, with pictures of memory and time."""

from collections.abc import Mapping, Sequence
from html import escape

from t5x_lite.verbs.page import page
from t5x_lite.verbs.precompile_text import ASSUMPTIONS, duration, line, money

# Units of the view box.
_WIDTH, _ROW, _LEFT, _RIGHT = 960, 34, 190, 90

_STYLE = """
.bars { margin: 1.2rem 0; } .bars rect { fill: var(--colour); }
.bars text { font-size: 15px; } .bars text.name { fill: var(--ink); }
.bars .limit { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 6 4; }
.bars .legend li:not(.level)::before { border-top-width: .7em; vertical-align: 0; width: .7em; }
.warning { border-left: 4px solid var(--c1); padding: .2rem .8rem; margin: .5rem 0; background: var(--card); }
.verdict { font-size: 1.15rem; } .no { color: var(--c1); font-weight: 600; }
"""


def render(title: str, reports: Sequence[Mapping]) -> str:
    """The page of one or several programs."""
    where = reports[0]["slice"]
    place = f"{where['topology']}{f' x {slices} slices' if (slices := where['slices']) > 1 else ''}, estimated"
    assumptions = "".join(f"<li>{escape(text)}</li>" for text in ASSUMPTIONS)
    parts = [_program(report) for report in reports]
    parts.append(f"<section><h2>What these figures are</h2><ul>{assumptions}</ul></section>")
    return page(title, place, "\n".join(parts), _STYLE)


def _program(report: Mapping) -> str:
    verdict = f'<p class="verdict{"" if report["memory"]["fits"] else " no"}">{escape(line(report))}.</p>'
    parts = [
        f"<section><h2>{escape(report['program'].capitalize())} step</h2>{verdict}",
        f'<dl class="headline">{_headline(report)}</dl>',
        _memory(report["memory"]),
    ]
    if "roofline" in report:
        parts += [_times(report["roofline"]), _collectives(report["collectives"])]
    parts += [f'<p class="warning">{escape(warning)}</p>' for warning in report["warnings"]]
    return "".join(parts) + "</section>"


def _headline(report: Mapping) -> str:
    where, job = report["slice"], report["job"]
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items() if size > 1) or "one device"
    figures = [
        ("parameters", f"{job['parameters'] / 1e6:,.0f}M", f"remat {job['remat']}"),
        ("chips", f"{where['chips']:,}", mesh),
        (
            "batch", f"{job['batch_size']:,}",
            f"{job['feature_lengths']['inputs']} + {job['feature_lengths']['targets']} tokens a row",
        ),
        ("memory a device", f"{report['memory']['total'] / 2**30:,.2f} GiB", report["memory"]["verdict"].split(":")[0]),
    ]  # fmt: skip
    if times := report.get("roofline"):
        fast, slow = times["overlapped"], times["not_overlapped"]
        figures += [
            ("estimated MFU", f"{slow['mfu']:.3f}", f"not hidden; {fast['mfu']:.3f} with communication hidden"),
            ("tokens a second", f"{slow['tokens_per_second']:,.0f}", f"up to {fast['tokens_per_second']:,.0f}"),
            (
                "FLOPs a step",
                f"{report['flops']['analytic']:.3g}",
                f"the program: {report['flops']['ratio']:.2f} times",
            ),
        ]
    if job := report.get("whole_job"):
        took = duration(job["hours"]["not_overlapped"])
        figures.append(("whole job", took, f"{job['steps']:,} steps, without start-up or evaluation"))
        if job["usd"]:
            cost = job["usd"]["not_overlapped"]
            figures.append(("cost", f"{money(cost)} USD", f"at {job['usd_per_chip_hour']:g} USD a chip hour"))
    return "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for what, value, note in figures
    )


def _memory(memory: Mapping) -> str:
    kinds = ("parameters", "optimizer", "activations", "temporaries")
    parts = [(kind, memory[kind] / 2**30) for kind in kinds]
    parts.append(("batch, outputs and code", memory["total"] / 2**30 - sum(value for _, value in parts)))
    return bars("Memory of a device", [("the program", parts)], "GiB", ("usable HBM", memory["usable"] / 2**30))


def _times(times: Mapping) -> str:
    def ms(*names: tuple[str, str]) -> list[tuple[str, float]]:
        return [(name, 1e3 * times[key]) for name, key in names]

    chip = ms(("compute", "compute_s")) if times["compute_s"] >= times["hbm_s"] else ms(("HBM", "hbm_s"))
    rows = [
        ("compute", ms(("compute", "compute_s"))),
        ("HBM", ms(("HBM", "hbm_s"))),
        ("ICI", ms(("ICI", "ici_s"))),
        *([("DCN", ms(("DCN", "dcn_s")))] if times["dcn_s"] else []),
        ("nothing hidden", [*chip, *ms(("ICI", "ici_s"), ("DCN", "dcn_s"))]),
    ]
    return bars("Estimated time of a step", rows, "ms", ("model FLOPs at peak", 1e3 * times["at_peak_s"]))


def bars(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], unit: str, limit: tuple[str, float]
) -> str:
    """Horizontal bars, each a stack of named parts, beside a limit.

    Args:
      title: heading.
      rows: (name, parts); parts of one name have one colour.
      unit: of the values.
      limit: (name, value) of a line across all rows.
    """
    names = list(dict.fromkeys(name for _, parts in rows for name, value in parts if value > 0))
    most = max([limit[1], *(sum(v for _, v in parts) for _, parts in rows)]) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    height = _ROW * len(rows) + 8
    svg = []
    for index, (row, parts) in enumerate(rows):
        at, top = float(_LEFT), index * _ROW + 6
        svg.append(f'<text class="name" x="{_LEFT - 10}" y="{top + 16}" text-anchor="end">{escape(row)}</text>')
        for name, value in parts:
            if value > 0:
                width = value * scale
                svg.append(
                    f'<rect class="c{names.index(name) % 6}" x="{at:.1f}" y="{top}" width="{max(width, 0.5):.1f}" '
                    f'height="22"><title>{escape(name)}: {_figure(value)} {unit}</title></rect>'
                )
                at += width
        total = sum(value for _, value in parts)
        svg.append(f'<text x="{at + 8:.1f}" y="{top + 16}">{_figure(total)}</text>')
    place = _LEFT + limit[1] * scale
    svg.append(f'<line class="limit" x1="{place:.1f}" x2="{place:.1f}" y1="0" y2="{height}"/>')
    legend = "".join(f'<li class="c{i % 6}">{escape(name)}</li>' for i, name in enumerate(names))
    return (
        f'<figure class="bars"><figcaption>{escape(title)}, {unit}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(svg)}</svg>'
        f'<ul class="legend">{legend}<li class="level">{escape(limit[0])}: {_figure(limit[1])}</li></ul></figure>'
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _collectives(found: Sequence[Mapping]) -> str:
    if not found:
        return ""
    heads = ("kind", "over", "devices", "runs a step", "GiB", "GiB sent a device", "estimated ms")
    rows = "".join(
        f"<tr><td>{escape(c['kind'])}</td><td>{escape(' x '.join(c['axes']))}</td>"
        + "".join(
            f'<td class="number">{value}</td>'
            for value in (
                f"{c['devices']}", f"{c['runs']:,}", f"{c['bytes'] / 2**30:,.3f}", f"{c['sent_bytes'] / 2**30:,.3f}",
                f"{1e3 * c['seconds']:,.2f}",
            )
        )
        + "</tr>"
        for c in found
    )  # fmt: skip
    head = "".join(f"<th>{h}</th>" for h in heads)
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>Communication</h2><div class="wide">{body}</div>'
