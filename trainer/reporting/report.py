"""``report.html``: what a run did, on one page without scripts, made from ``metrics.jsonl``, ``run.json`` and the
pictures alone."""

import base64
import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecoach.data.files import atomic_file
from stagecoach.models.family import Metric
from stagecoach.trainer.reporting.chart import Series, line_chart, number
from stagecoach.trainer.reporting.cluster_page import cluster_html
from stagecoach.trainer.reporting.monitor import METRICS
from stagecoach.trainer.reporting.run_record import MetricFacts, read_run_record
from stagecoach.trainer.reporting.sinks import read_metrics

CLOCKWORK = (
    "step_seconds",
    "samples_per_second",
    "data_wait",
    "memory_gib",
    "mfu",
    "learning_rate",
    "gradient_norm",
    "skipped_steps",
)
"""The trainer's own numbers, shown after those of the family."""
HEADER = ("stage", "metric", "first", "last", "baseline", "asked", "unit", "reached")
EMBED_BYTES = 400_000
"""A picture up to this size goes into the page; a larger one is linked."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --rule: #d5d9de; --page: #fff; --card: #f7f8fa;
  --c0: #1f6feb; --c1: #c2410c; --c2: #15803d; --c3: #9333ea; --c4: #b45309; --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3ad; --rule: #3a4048; --page: #14171a;
  --card: #1c2024; --c0: #6ea8fe; --c1: #fb923c; --c2: #4ade80; --c3: #c084fc; --c4: #fbbf24; --good: #4ade80;
  --bad: #f87171; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .7rem; } h1 { margin-top: 0; } .soft { color: var(--soft); }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--rule); text-align: left; }
td.n, th.n { text-align: right; } .yes { color: var(--good); } .no { color: var(--bad); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
figure { margin: 0; padding: .7rem; background: var(--card); border-radius: .5rem; } figcaption { font-weight: 600; }
figure img, svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--soft); }
summary { cursor: pointer; margin: 1rem 0; } code { font-size: .9em; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Row:
    """A line of the summary: a metric of a stage from its first value to its last, next to the last value of its
    baseline and the limit of its exit criterion, where it has them."""

    stage: int
    metric: Metric
    first: float
    last: float
    baseline: float | None
    limit: float | None

    @property
    def reached(self) -> bool | None:
        """Whether the last value is better than the exit criterion, or else than the baseline; None where there is
        neither."""
        against, higher = self.baseline if self.limit is None else self.limit, self.metric.higher_is_better
        if against is None or higher is None:
            return None
        return self.last > against if higher else self.last < against


def write_report(run: str | Path) -> str:
    """Write ``report.html`` into a run folder and return its summary as a table for the terminal.

    Raises ``ValueError`` where the folder has no metrics.
    """
    run = Path(run)
    path = run / METRICS
    if not path.is_file():
        raise ValueError(f"{path}: missing, expected the metrics of a run; a report is made after some steps")
    records, facts = read_metrics(path), read_run_record(run)
    stages = sorted({record["stage"] for record in records})
    rows = [row for stage in stages for row in summary(stage, _curves(records, stage), _stage_facts(facts, stage))]
    parts = [_head(run, facts), "<h2>Where it stands</h2>", _summary_html(rows)]
    for stage in stages:
        parts.append(_stage_html(run, stage, _curves(records, stage), _stage_facts(facts, stage)))
        parts.append(cluster_html(records, stage, facts.get("hosts", [])))
    parts.append(_starts_html(facts))
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(run.resolve().name)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    with atomic_file(run / "report.html", "w") as handle:
        handle.write(page)
    return table_text(rows)


Curves = dict[str, list[tuple[float, float]]]


def summary(stage: int, curves: Curves, facts: dict[str, Any]) -> list[Row]:
    """A row for each metric of the family; those with a criterion or a baseline come first. A criterion whose metric
    was never measured has a row of its own, not reached."""
    limits, metrics = _limits(facts), _metrics(facts)
    rows = []
    for name in _family_names(curves, metrics):
        points, metric = curves[name], metrics.get(name, Metric(name))
        baseline = curves.get(metric.baseline or "")
        rows.append(
            Row(stage, metric, points[0][1], points[-1][1], baseline[-1][1] if baseline else None, limits.get(name))
        )
    missing = [name for name in limits if name not in curves]
    rows += [Row(stage, metrics.get(name, Metric(name)), math.nan, math.nan, None, limits[name]) for name in missing]
    return sorted(rows, key=lambda row: (row.limit is None, row.baseline is None))


def _limits(facts: dict[str, Any]) -> dict[str, float]:
    """Of the exit criteria, by metric."""
    return {criterion["metric"]: criterion["limit"] for criterion in facts.get("exits", [])}


def _metrics(facts: dict[str, Any]) -> dict[str, Metric]:
    known = MetricFacts.__annotations__
    found = [{name: value for name, value in metric.items() if name in known} for metric in facts.get("metrics", [])]
    return {metric["name"]: Metric(**metric) for metric in found}


def _family_names(curves: Curves, metrics: dict[str, Metric]) -> list[str]:
    """The curves that have a row: neither the trainer's own numbers nor a baseline."""
    hidden = {*CLOCKWORK, *(metric.baseline for metric in metrics.values())}
    return [name for name in curves if name not in hidden]


def table_text(rows: list[Row]) -> str:
    """The summary for a terminal."""
    cells: list[tuple[str, ...]] = [HEADER]
    cells += [(str(row.stage), row.metric.name, *_row_cells(row)) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (1, 6, 7) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _row_cells(row: Row) -> tuple[str, ...]:
    return (
        number(row.first),
        number(row.last),
        "" if row.baseline is None else number(row.baseline),
        "" if row.limit is None else f"{'>' if row.metric.higher_is_better else '<'} {row.limit:g}",
        row.metric.unit,
        {None: "", True: "yes", False: "no"}[row.reached],
    )


def _curves(records: Iterable[dict[str, Any]], stage: int) -> Curves:
    """Points by name in the order of first appearance; ``null`` is a value that was not finite."""
    curves: Curves = {}
    for record in records:
        if record["stage"] == stage:
            for name, value in record.items():
                # What is said of the cluster has a part of its own.
                if name not in ("stage", "step", "time", "ranks") and not name.startswith("cluster/"):
                    curves.setdefault(name, []).append((record["step"], math.nan if value is None else float(value)))
    return curves


def _stage_facts(facts: dict[str, Any], stage: int) -> dict[str, Any]:
    return facts.get(f"stage{stage}", {})


def _stage_html(run: Path, stage: int, curves: Curves, facts: dict[str, Any]) -> str:
    limits, metrics = _limits(facts), _metrics(facts)
    title = f"Stage {stage}" + (f": {facts['name']}" if "name" in facts else "")
    baselines = {name: metric.baseline for name, metric in metrics.items() if metric.baseline in curves}
    groups = chart_groups([name for name in curves if name not in baselines.values()])
    charts: dict[bool, list[str]] = {False: [], True: []}
    for head, names in groups.items():
        series = [Series(name, curves[name]) for name in names]
        held = {baselines[name]: name for name in reversed(names) if name in baselines}
        flat = [(f"baseline of {name}", curves[baseline][-1][1]) for baseline, name in held.items()]
        flat += [(f"asked of {name}", limits[name]) for name in names if name in limits]
        charts[head in CLOCKWORK].append(
            f"<figure><figcaption>{html.escape(head)}</figcaption>{line_chart(series, flat)}</figure>"
        )
    parts = [
        f"<h2>{html.escape(title)}</h2>",
        f"<div class=grid>{''.join(charts[False])}</div>",
        _previews_html(run, stage),
    ]
    if charts[True]:
        parts.append(
            "<details><summary>Speed, memory and optimizer</summary>"
            f"<div class=grid>{''.join(charts[True])}</div></details>"
        )
    return "".join(parts) + _modules_html(facts)


def chart_groups(names: list[str]) -> dict[str, list[str]]:
    """Names that share a chart, by the first of them: ``x`` and each ``x_something``."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=len):
        head = next((head for head in groups if name.startswith(f"{head}_")), name)
        groups.setdefault(head, []).append(name)
    return {head: groups[head] for head in sorted(groups, key=names.index)}


def _previews_html(run: Path, stage: int) -> str:
    steps = {
        int(path.name.removeprefix("step_")): path
        for path in (run / "previews" / f"stage{stage}").glob("step_*")
        if path.name[5:].isdigit()
    }
    if not steps:
        return ""
    last = max(steps)
    figures = []
    for path in sorted(p for p in steps[last].iterdir() if p.suffix in (".png", ".gif")):
        source = str(path.relative_to(run))
        if path.stat().st_size <= EMBED_BYTES:
            source = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        name = html.escape(path.stem)
        figures.append(
            f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="{html.escape(source)}"></figure>'
        )
    return f"<h3>Pictures after {last:,} steps</h3><div class=grid>{''.join(figures)}</div>"


def _modules_html(facts: dict[str, Any]) -> str:
    modules = facts.get("modules")
    if not modules:
        return ""
    rows = []
    for row in modules:
        scale = row.get("lr_scale")
        state = "frozen" if scale is None else f"trains at {scale:g} × the learning rate"
        if row.get("start_fraction"):
            state += f" from {row['start_fraction']:.0%} of the stage on"
        rows.append(
            (f"<code>{html.escape(row['pattern'])}</code>", f"{row['modules']:,}", f"{row['parameters']:,}", state)
        )
    rows.append(("all", "", f"{facts.get('trainable', 0):,} + {facts.get('frozen', 0):,}", "trained + frozen"))
    return "<h3>Parameters</h3>" + html_table(("modules", "number", "parameters", ""), rows, numeric=(1, 2))


def _summary_html(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        first, last, baseline, asked, unit, reached = _row_cells(row)
        mark = f"<span class={reached}>{reached}</span>" if reached else ""
        lines.append(
            (
                str(row.stage),
                f"<code>{html.escape(row.metric.name)}</code>",
                *(first, last, baseline, html.escape(asked), html.escape(unit), mark),
            )
        )
    return (
        "<p class=soft>Reached: the last value is better than what was asked of the stage, or else than the baseline, "
        f"which is the best predictor that sees no input.</p>{html_table(HEADER, lines, numeric=(2, 3, 4, 5))}"
    )


def _head(run: Path, facts: dict[str, Any]) -> str:
    last = (facts.get("starts") or [{}])[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last.get("versions", {}).items())
    shown = [f"<h1>{html.escape(run.resolve().name)}</h1>"]
    if last:
        shown.append(
            f"<p class=soft>last started {html.escape(last['time'])} on {html.escape(last['host'])}, "
            f"{last['world_size']} ranks; {html.escape(versions)}</p>"
        )
    return "".join(shown)


def _starts_html(facts: dict[str, Any]) -> str:
    starts = facts.get("starts", [])
    rows = [
        (
            html.escape(start["time"]),
            str(start["stage"]),
            f"{start['step']:,}",
            str(start["world_size"]),
            html.escape((start.get("commit") or "")[:12]),
            f"<code>{html.escape(' '.join(start['argv']))}</code>",
        )
        for start in starts
    ]
    return (
        ""
        if not rows
        else "<h2>Starts</h2>"
        + html_table(("time", "stage", "from step", "ranks", "commit", "command"), rows, numeric=(1, 2, 3))
    )


def html_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], numeric: tuple[int, ...]) -> str:
    """An HTML table; cells are HTML already."""

    def line(cells: tuple[str, ...], tag: str) -> str:
        return (
            "<tr>"
            + "".join(f"<{tag}{' class=n' if i in numeric else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
            + "</tr>"
        )

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
