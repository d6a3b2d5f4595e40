"""One HTML file that holds all it shows: answers side by side, videos in step. It asks for nothing over a network."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

TYPES = {".mp4": "video/mp4", ".png": "image/png"}
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff; }
table { border-collapse: collapse; } th, td { padding: .4em .6em; vertical-align: top; text-align: left; }
thead th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #888; }
tbody tr { border-bottom: 1px solid #ddd; } video, img { display: block; width: 320px; margin-bottom: .3em; }
pre { white-space: pre-wrap; max-width: 22em; font-size: 12px; } .missing { color: #a00; max-width: 20em; }
.note { color: #666; font-size: 12px; } nav { margin-bottom: 1em; } button { font: inherit; margin-right: .5em; }
"""
SCRIPT = """
const videos = [...document.querySelectorAll("video")];
const bar = document.getElementById("time");
const length = () => Math.max(...videos.map(v => v.duration || 0), 0);
let playing = false, at = 0, last = 0;
function place() {
  for (const v of videos) {
    const t = Math.min(at, Math.max((v.duration || 0) - 0.001, 0));
    if (playing && !v.ended && t < v.duration - 0.05) {
      if (Math.abs(v.currentTime - t) > 0.15) v.currentTime = t;
      if (v.paused) v.play().catch(() => {});
    } else { v.pause(); v.currentTime = t; }
  }
}
function tick(now) {
  if (playing) {
    at += (now - last) / 1000;
    if (at >= length()) at = 0;
    place();
    bar.value = length() ? at / length() : 0;
  }
  last = now;
  requestAnimationFrame(tick);
}
document.getElementById("play").onclick = () => { playing = !playing; place(); };
document.getElementById("start").onclick = () => { at = 0; bar.value = 0; place(); };
bar.oninput = () => { playing = false; at = bar.value * length(); place(); };
requestAnimationFrame(tick);
"""


@dataclass(frozen=True)
class Cell:
    """What one column has for a row: ``files`` to show, with a ``note`` below, or why there is ``nothing``."""

    files: Sequence[Path] = ()
    note: str = ""
    nothing: str = ""


@dataclass(frozen=True)
class Row:
    """``title`` and the ``entry`` of a request, and a cell for each column."""

    title: str
    entry: dict[str, Any]
    cells: Sequence[Cell]


def make_page(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    """HTML of a table: ``columns`` by name and what they are. Raises ``ValueError`` for a file that is neither video
    nor picture."""
    head = "".join(f"<th>{escape(name)}<div class=note>{escape(note)}</div></th>" for name, note in columns)
    body = "".join(_row(row) for row in rows)
    moves = any(file.suffix == ".mp4" for row in rows for cell in row.cells for file in cell.files)
    controls = (
        "<nav><button id=play>Play / pause</button><button id=start>To the start</button>"
        '<input id=time type=range min=0 max=1 step=0.001 value=0 style="width:24em"></nav>'
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"{controls if moves else ''}<table><thead><tr><th>request</th>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"{f'<script>{SCRIPT}</script>' if moves else ''}</body></html>\n"
    )


def _row(row: Row) -> str:
    entry = escape(json.dumps(row.entry, indent=1, ensure_ascii=False))
    cells = "".join(f"<td>{_cell(cell)}</td>" for cell in row.cells)
    return f"<tr><th>{escape(row.title)}<pre>{entry}</pre></th>{cells}</tr>\n"


def _cell(cell: Cell) -> str:
    if cell.nothing:
        return f"<div class=missing>{escape(cell.nothing)}</div>"
    shown = "".join(_media(file) for file in cell.files)
    return f"{shown}<div class=note>{escape(cell.note)}</div>"


def _media(file: Path) -> str:
    if file.suffix not in TYPES:
        raise ValueError(f"{file}: expected a file to show that ends in {' or '.join(TYPES)}")
    source = f"data:{TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
    name = escape(file.name)
    if file.suffix == ".mp4":
        return f'<video muted playsinline preload="auto" title="{name}" src="{source}"></video>'
    return f'<img alt="{name}" title="{name}" src="{source}">'
