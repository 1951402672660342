"""A line chart as inline SVG: no script, no network; colours and fonts come from the page's style sheet."""

import dataclasses
import math
from collections.abc import Sequence
from html import escape

# Units of the view box. A chart is about as wide as a phone, so that its text stays readable there.
_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 26, 10, 40
# More points than this say nothing more at that width.
_POINTS = 600
# Few enough points to be marked one by one and to show their values on hovering.
_MARKED = 60

Point = tuple[float, float | None]


@dataclasses.dataclass(frozen=True)
class Series:
    """A named curve; a point without a value breaks the line.

    Args:
      name: in the legend.
      points: (x, y) in order of x.
    """

    name: str
    points: Sequence[Point]


def chart(
    title: str, series: Sequence[Series], x: str, y: str, levels: Sequence[tuple[str, float]] = (), zero: bool = False,
    log: bool = False,
) -> str:  # fmt: skip
    """A figure with a legend.

    Args:
      title: heading.
      series: curves; those without any value are left out.
      x, y: axis labels.
      levels: named horizontal lines.
      zero: the y axis starts at 0.
      log: logarithmic y axis, where all values allow it.

    Returns:
      HTML, or an empty string where no curve has a value.
    """
    shown = [s for s in series if any(v is not None for _, v in s.points)]
    if not shown:
        return ""
    values = [v for s in shown for _, v in s.points if v is not None] + [v for _, v in levels]
    log = log and min(values) > 0
    places = [at for s in shown for at, _ in s.points]
    x_low, x_high = _range(min(places), max(places))
    y_low, y_high = _range(0.0 if zero else min(values), max(values))
    if log:
        y_low, y_high = min(values) / 1.1, max(values) * 1.1
        y_ticks = log_ticks(y_low, y_high)
    else:
        y_ticks = ticks(y_low, y_high, outward=True)
        y_low, y_high = y_ticks[0], y_ticks[-1]
    bend = math.log if log else float

    def across(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        share = (bend(value) - bend(y_low)) / (bend(y_high) - bend(y_low))
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(ticks(x_low, x_high), y_ticks, across, up, x, y)]
    for name, level in levels:
        height = f"{up(level):.1f}"
        parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height}" y2="{height}">'
            f"<title>{escape(name)}: {number(level)}</title></line>"
        )
    for index, one in enumerate(shown):
        parts.append(_curve(one, f"c{index % 6}", across, up))
    keys = [(f"c{i % 6}", s.name) for i, s in enumerate(shown)] + [("level", name) for name, _ in levels]
    legend = "".join(f'<li class="{kind}">{escape(name)}</li>' for kind, name in keys)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
        + (f'<ul class="legend">{legend}</ul>' if len(keys) > 1 else "")
        + "</figure>"
    )


def _axes(x_ticks, y_ticks, across, up, x: str, y: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in y_ticks:
        height = f"{up(tick):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height}" dy=".32em" text-anchor="end">{compact(tick)}</text>')
    for tick in x_ticks:
        place = f"{across(tick):.1f}"
        parts.append(f'<line class="axis" x1="{place}" x2="{place}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{place}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>')
    middle = f"{(_TOP + bottom) / 2:.0f}"
    return "".join(parts) + (
        f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x)}</text>'
        f'<text transform="translate(10 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )


def _curve(series: Series, kind: str, across, up) -> str:
    runs: list[list[str]] = [[]]
    for at, value in thinned(series.points, _POINTS):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{across(at):.1f},{up(value):.1f}")
    parts = [f'<polyline class="{kind}" points="{" ".join(run)}"/>' for run in runs if len(run) > 1]
    known = [(at, value) for at, value in series.points if value is not None]
    # A value between two gaps has no line to be seen by.
    alone = {run[0] for run in runs if len(run) == 1}
    for at, value in known:
        place = f"{across(at):.1f},{up(value):.1f}"
        if len(known) <= _MARKED or place in alone:
            cx, cy = place.split(",")
            parts.append(
                f'<circle class="{kind}" cx="{cx}" cy="{cy}" r="2.5">'
                f"<title>{escape(series.name)}, step {at:,}: {number(value)}</title></circle>"
            )
    return "".join(parts)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points: of each stretch its least and its greatest value, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        known = [p for p in stretch if p[1] is not None]
        if len(known) < len(stretch):
            kept.extend(stretch)  # gaps are rare, and worth seeing
        else:
            kept.extend(sorted({min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])}))
    return kept


def _range(low: float, high: float) -> tuple[float, float]:
    """The same, or widened where it is empty."""
    if high > low:
        return low, high
    margin = abs(low) / 2 or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float, outward: bool = False) -> list[float]:
    """A handful of round numbers 1, 2, 2.5 or 5 times a power of ten apart, within the range or just around it."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    down, up = (math.floor, math.ceil) if outward else (math.ceil, math.floor)
    slack = 1e-9 if outward else -1e-9
    first, last = down(low / step + slack), up(high / step - slack)
    # Rounded to the step's own digits: 3 * 0.1 is not 0.3.
    digits = 1 - math.floor(math.log10(step))
    return [round(n * step, digits) + 0.0 for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; only the powers where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    coarse = [tick for tick in fine if math.isclose(math.log10(tick), round(math.log10(tick)))]
    return coarse if len(fine) > 7 else fine or ticks(low, high)


def number(value: float | int | None) -> str:
    """Four significant digits for people: 12,345, 1.5M, 2.731, 0.0005; a dash where there is none."""
    if value is None:
        return "–"
    size = abs(value)
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= limit:
            return f"{value / limit:.4g}{letter}"
    if size >= 10_000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"


def compact(value: float) -> str:
    """As `number`, with thousands from 10,000 on as k: room beside an axis is short."""
    return f"{value / 1000:.4g}k" if 10_000 <= abs(value) < 1e6 else number(value)
