"""The report's part on the cluster: charts of the reduced numbers, and heat maps of rank by time."""

import base64
import html
import io
from collections.abc import Sequence
from statistics import median_low
from typing import Any

import numpy as np
from PIL import Image

from stagecoach.trainer.reporting.chart import Series, line_chart, number

COLUMNS = 240
"""A longer run is drawn by the largest value of as many runs of equal length, so that a bad moment stays visible."""
MAPS = (
    ("step_seconds", "own seconds a step, by the median of the ranks", 1.0, 1.5),
    ("data_wait", "share of the time that waits for data", 0.0, 0.5),
    ("memory_gib", "GiB, by the largest of all", None, 1.0),
    ("gpu_temperature_c", "degrees Celsius of the GPU", 40.0, 90.0),
)
"""Heat maps: name, caption, the values that are palest and darkest."""
PALE, DARK = np.array([234, 240, 247]), np.array([176, 24, 24])
ROW_HEIGHT, LEAST_HEIGHT = 6, 48


def cluster_html(records: Sequence[dict[str, Any]], stage: int, hosts: Sequence[str]) -> str:
    """HTML of one stage from its records in ``metrics.jsonl``; empty where none has numbers by rank."""
    records = [record for record in records if record["stage"] == stage and isinstance(record.get("ranks"), dict)]
    # After a resume on other ranks only what they have in common with the newest can be drawn together.
    size = len(records[-1]["ranks"].get("step_seconds", ())) if records else 0
    records = [record for record in records if len(record["ranks"].get("step_seconds", ())) == size]
    if not size:
        return ""
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith("cluster/") and isinstance(value, int | float):
                curves.setdefault(name.removeprefix("cluster/"), []).append((record["step"], float(value)))
    figures = [
        f"<figure><figcaption>{html.escape(name)}</figcaption>{line_chart([Series(name, points)], [])}</figure>"
        for name, points in curves.items()
    ]
    maps = [_map(records, hosts, *one) for one in MAPS] if size > 1 else []
    return (
        f"<details><summary>Cluster: {size} ranks</summary>{''.join(maps)}"
        f"<div class=grid>{''.join(figures)}</div></details>"
    )


def _map(
    records: Sequence[dict[str, Any]], hosts: Sequence[str], name: str, caption: str, pale: float | None, dark: float
) -> str:
    table = heat_table([record["ranks"].get(name) for record in records], relative=name == "step_seconds")
    if table is None:
        return ""
    if pale is None:
        pale, dark = 0.0, max(float(np.nanmax(table)), 1e-9)
    first, last = records[0]["step"], records[-1]["step"]
    worst = int(np.nanargmax(np.nanmean(table, axis=1)))
    where = f"rank {worst}" + (f" ({html.escape(hosts[worst])})" if worst < len(hosts) else "")
    return (
        f"<figure><figcaption>{html.escape(name)}: {html.escape(caption)}</figcaption>"
        f'<img alt="{html.escape(name)} of each rank over time" style="image-rendering:pixelated" '
        f'src="data:image/png;base64,{base64.b64encode(_png(table, pale, dark)).decode()}">'
        f"<div class=soft>rank 0 above, rank {len(table) - 1} below; step {first:,} to {last:,}; "
        f"{number(pale)} is pale, {number(dark)} red; highest on the mean: {where}</div></figure>"
    )


def heat_table(columns: Sequence[Sequence[float | None] | None], relative: bool) -> np.ndarray | None:
    """``[ranks, at most COLUMNS]``: the largest of neighbouring log lines, ``relative`` to each line's median."""
    there = [[np.nan if value is None else value for value in column] for column in columns if column]
    if not there or all(np.isnan(column).all() for column in there):
        return None
    if relative:
        middles = [median_low([value for value in column if value == value] or [1.0]) or 1.0 for column in there]
        there = [[value / middle for value in column] for column, middle in zip(there, middles, strict=True)]
    parts = np.array_split(np.array(there), min(COLUMNS, len(there)))
    return np.stack([np.fmax.reduce(part) for part in parts], axis=1)


def _png(table: np.ndarray, pale: float, dark: float) -> bytes:
    share = np.nan_to_num(np.clip((table - pale) / (dark - pale), 0.0, 1.0))[..., None]
    pixels = (PALE + (DARK - PALE) * share).astype(np.uint8)
    height = max(ROW_HEIGHT, LEAST_HEIGHT // len(table))
    buffer = io.BytesIO()
    Image.fromarray(pixels.repeat(height, axis=0)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
