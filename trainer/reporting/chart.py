"""Line charts as inline SVG."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 22
POINTS = 300
"""A longer curve is drawn by the means of as many runs of equal length."""
COLOURS = 5


@dataclass(frozen=True)
class Series:
    """A curve: (step, value) in the order of steps."""

    name: str
    points: list[tuple[float, float]]


def line_chart(series: list[Series], levels: list[tuple[str, float]]) -> str:
    """An SVG of curves and, dashed, constant ``levels``; logarithmic where all is positive over more than a factor of
    30. Colours are the page's ``--c0`` to ``--c4``."""
    finite = [Series(one.name, [(s, v) for s, v in one.points if math.isfinite(v)]) for one in series]
    curves = [Series(one.name, thinned(one.points)) for one in finite if one.points]
    levels = [(name, value) for name, value in levels if math.isfinite(value)]
    if not curves:
        return "<p class=soft>no finite values</p>"
    values = [value for one in curves for _, value in one.points] + [value for _, value in levels]
    steps = [step for one in finite for step, _ in one.points]
    logarithmic = min(values) > 0 and max(values) / min(values) > 30
    scale = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float, of: Callable[[float], float] = scale) -> float:
        return TOP + (high - of(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in range(5):
        at = low + (high - low) * tick / 4
        height = y(at, float)  # not by way of the value, which may be too small for its logarithm
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" '
            f'stroke="var(--rule)" stroke-width="1"/><text x="{LEFT - 6}" y="{height + 4:.1f}" '
            f'text-anchor="end">{number(10**at if logarithmic else at)}</text>'
        )
    for step, anchor in ((first, "start"), (last, "end")):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step:,}</text>')
    for name, value in levels:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="var(--soft)" stroke-width="1.3" stroke-dasharray="5 4"><title>{html.escape(name)} '
            f"{number(value)}</title></line>"
        )
    for index, one in enumerate(curves):
        colour = f"var(--c{index % COLOURS})"
        if len(one.points) == 1:
            step, value = one.points[0]
            parts.append(f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>')
        else:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in one.points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>{_legend(curves, levels)}'


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` points: means of step and value over runs of neighbours. The last one stays."""
    if len(points) <= POINTS:
        return points
    size = math.ceil((len(points) - 1) / (POINTS - 1))
    runs = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    return [(sum(step for step, _ in run) / len(run), sum(value for _, value in run) / len(run)) for run in runs] + [
        points[-1]
    ]


def number(value: float) -> str:
    """Three significant digits, for axes and tables; a dash for what is not finite."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"


def _legend(curves: list[Series], levels: list[tuple[str, float]]) -> str:
    """Names and last values; nothing where one curve stands under its own caption."""
    if len(curves) == 1 and not levels:
        return ""
    entries = [
        f'<span style="color:var(--c{index % COLOURS})">━ {html.escape(one.name)} {number(one.points[-1][1])}</span>'
        for index, one in enumerate(curves)
    ]
    entries += [f"<span class=soft>┅ {html.escape(name)} {number(value)}</span>" for name, value in levels]
    return f"<div>{'<br>'.join(entries)}</div>"
