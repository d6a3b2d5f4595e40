"""The result of an evaluation for people: a table for the terminal, and one self-contained page."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stagecoach.trainer.reporting.chart import number
from stagecoach.trainer.reporting.report import EMBED_BYTES, STYLE, html_table

HEADER = ("metric", "mean", "95 % interval", "n", "without", "baseline", "unit", "better")
AGAINST = ("metric", "A", "B", "A - B", "95 % interval", "n", "A above", "A below", "p", "better", "ahead")
NUMERIC = (1, 2, 3, 4, 5)
SHOWN = ("contact.png", "picture.png")
MOST_SHOWN, MOST_COLUMNS = 60, 8

Row = tuple[str, ...]


def result_rows(result: Mapping[str, Any]) -> list[Row]:
    """A line of ``HEADER`` for each metric."""
    rows: list[Row] = []
    for name, value in result["metrics"].items():
        baseline = "" if value.get("baseline") is None else number(value["baseline"])
        rows.append((name, number(value["mean"]), interval(value), str(value["n"]), str(value.get("left_out", 0)),
                     baseline, value["unit"], value["better"]))  # fmt: skip
    return rows


def against_rows(result: Mapping[str, Any]) -> list[Row]:
    """A line of ``AGAINST`` for each metric that both sides have; of a whole set the two numbers alone."""
    rows: list[Row] = []
    for name, value in result.get("against", {}).get("metrics", {}).items():
        if "difference" not in value:
            rows.append((name, number(value["a"]), number(value["b"]), *[""] * 8))
            continue
        difference = value["difference"]
        means = result["metrics"].get(name, {}).get("mean"), result["against"]["means"].get(name)
        rows.append((name, *("" if m is None else number(m) for m in means), number(difference["mean"]),
                     interval(difference), str(difference["n"]), str(value["above"]), str(value["below"]),
                     f"{value['p']:.2g}", value["better"], (value["ahead"] or "").upper()))  # fmt: skip
    return rows


def interval(value: Mapping[str, Any]) -> str:
    """The interval of a mean; of a set's number that of its random halves."""
    if value.get("halves"):
        return f"halves {number(min(value['halves']))} .. {number(max(value['halves']))}"
    return f"{number(value['low'])} .. {number(value['high'])}" if "low" in value else ""


def text(result: Mapping[str, Any]) -> str:
    """For the terminal."""
    parts = [f"{result['samples']} samples of {', '.join(result['generated'])}, {len(result['failed'])} not readable"]
    parts.append(_aligned(HEADER, result_rows(result), numeric=NUMERIC) if result["metrics"] else "no metric")
    if result.get("against"):
        parts.append(f"A against B, {result['against']['generated']}, by sample")
        parts.append(_aligned(AGAINST, against_rows(result), numeric=range(1, 9)))
    if result["absent"]:
        parts.append("absent:\n" + "\n".join(f"  {name}: {reason}" for name, reason in result["absent"].items()))
    return "\n\n".join(parts)


def _aligned(header: Row, rows: Sequence[Row], numeric: Sequence[int] | range) -> str:
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(c.rjust(w) if i in numeric else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        .rstrip()
        for line in lines
    )  # fmt: skip


def page(result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], pictures: Mapping[str, Path]) -> str:
    """HTML without scripts or links; ``pictures``: a small one of each sample."""
    title = ", ".join(Path(path).name for path in result["generated"])
    parts = [
        f"<h1>Evaluation of {html.escape(title)}</h1>",
        f"<p class=soft>{result['samples']} samples, {len(result['failed'])} not readable; truth: "
        f"{html.escape(result['truth'] or 'none')}. Means over samples with 95 % bootstrap intervals; without: samples "
        "that have no number; baseline: the first frame (pose, camera) held, one colour, one depth.</p>",
        _html(HEADER, result_rows(result), NUMERIC),
    ]
    if result.get("against"):
        other = html.escape(result["against"]["generated"])
        parts += [f"<h2>A against B: {other}</h2>", _html(AGAINST, against_rows(result), tuple(range(1, 9)))]
    for title, listed in (("Absent", result["absent"]), ("Not readable", result["failed"])):
        if listed:
            parts += [f"<h2>{title}</h2>", _html(("name", "reason"), list(listed.items()), ())]
    if result["weights"]:
        parts += ["<h2>Weights</h2>", _html(("of", "sha256"), list(result["weights"].items()), ())]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><body>{''.join(parts)}"
        f"{_samples_html(result, samples, pictures)}</body></html>\n"
    )


def _samples_html(result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], pictures: Mapping[str, Path]) -> str:
    names = [name for name, value in result["metrics"].items() if "low" in value][:MOST_COLUMNS]
    rows: list[Row] = []
    figures: list[str] = []
    for sample in samples:
        values = sample.get("metrics", {})
        rows.append((sample["sample"], *(number(values[n]) if n in values else "" for n in names)))
        picture = pictures.get(sample["sample"])
        if picture is not None and len(figures) < MOST_SHOWN and picture.stat().st_size <= EMBED_BYTES:
            name, data = html.escape(sample["sample"]), base64.b64encode(picture.read_bytes()).decode()
            figures.append(
                f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'
            )
    table = _html(("sample", *names), rows, tuple(range(1, len(names) + 1)))
    return f"<h2>Samples</h2>{table}<div class=grid>{''.join(figures)}</div>"


def _html(header: Row, rows: Sequence[Row], numeric: tuple[int, ...]) -> str:
    return html_table(header, [tuple(html.escape(cell) for cell in row) for row in rows], numeric)


def small_pictures(paths: Mapping[str, Path]) -> dict[str, Path]:
    """What shows each sample: a contact sheet or picture of its folder, or itself."""
    found = {}
    for name, path in paths.items():
        shown = [path / each for each in SHOWN if (path / each).is_file()] if path.is_dir() else [path]
        if shown and shown[0].suffix == ".png":
            found[name] = shown[0]
    return found
