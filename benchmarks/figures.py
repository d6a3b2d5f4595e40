"""Figures of docs/: what small models, trained on synthetic data for some minutes, make through the pipelines.

    python benchmarks/figures.py [--only movie|dance|world|evaluation] [--output docs]

The models are those of the tests in tests/learning, which measure what the figures show.
"""

import json
import sys
import tempfile
import textwrap
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stagecoach.data.dance_with_music.drawing import draw_skeleton
from stagecoach.data.dance_with_music.picture import BACKGROUND
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.figures import Variety
from stagecoach.data.files import atomic_file
from stagecoach.data.movie_post_production.requests import parse_reference
from stagecoach.data.movie_post_production.synthetic import write_synthetic
from stagecoach.data.pictures import column, read_picture, resized, titled
from stagecoach.trainer.cli import run_main
from tests.learning.scripts import run
from tests.learning.small_dance import speed, train_small_dance, unseen
from tests.learning.small_movie import LEFT, RIGHT, SIDE, SmallMovie, photo, placed, train_small_movie
from tests.learning.small_world import train_small_world
from tests.tiny_dance import make_tiny_dance

PANEL = 96
COLOURS = 128
"""Of a palette: a figure takes a third of its size in full colour."""
MEASURED, EXAMPLES = 48, 5
CONTROLS = {"B": "another object's reference", "C": "the box mirrored"}
METRICS = ("psnr", "ssim", "face_similarity", "layout_grounding_score", "clip_i", "fid")
"""Two that can be measured here, and four whose networks, faces or detections are not given."""
INTERVAL = (30, 90, 200)
"""Its colour."""


def draw_movie(folder: Path) -> np.ndarray:
    """A row for each reference: pictures of three noises with the box on the left, then on the right."""
    paint = train_small_movie(folder).painter(3, steps=28)
    rows = []
    for colour in ("red", "blue", "green", "yellow"):
        sides = [_row(paint(placed(colour, box)), title) for box, title in ((LEFT, "box left"), (RIGHT, "box right"))]
        rows.append(np.concatenate([titled(_panel(photo(colour)), "reference"), *sides], 1))
    return column(rows)


def draw_dance(folder: Path) -> np.ndarray:
    """A photo, and what is danced to a song from a frame on and from a later one: poses, speed of the body."""
    data = make_tiny_dance(folder / "data", 64)
    dance = train_small_dance(folder / "run", data, "demo").dancer(folder, 0, 5.0)
    rows = [titled(_panel(unseen(0).portrait), "photo")]
    for first in (20, 26):
        made = dance(first, 100, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
        shown = np.linspace(0, 99, 9).round().astype(int)
        blank = np.full((PANEL, PANEL, 3), BACKGROUND, np.uint8)
        pose = made.pose.double().numpy()
        title = f"song from {first / FRAME_RATE:.2f} s"
        rows.append(_row([draw_skeleton(blank, pose[k, :, :2], pose[k, :, 2]) for k in shown], title))
        rows.append(_bars(speed(made.pose).numpy(), rows[-1].shape[1]))
    return column(rows)


def draw_world(folder: Path) -> np.ndarray:
    """Rows of frames of three noises, the camera turned left, then right."""
    world = train_small_world(folder)
    rows = []
    for side, degrees in (("left", -22), ("right", 22)):
        for film in world.films(f"pan:degrees={degrees}", 3):
            frames = np.concatenate([resized(_bytes(film[k]), width=2 * PANEL, nearest=True) for k in (0, 4, 8)], 1)
            rows.append(titled(frames, f"camera turned {side}: frames 0, 4, 8"))
    return column(rows)


def draw_evaluation(folder: Path) -> np.ndarray:
    """Pictures never seen, painted as asked (A) and with swapped conditions (B, C) from the same noise, and what
    ``launch/evaluate.py`` says of A against each."""
    measured = measure_controls(train_small_movie(folder), folder / "evaluation")
    requests = {name: _requests(folder / "evaluation" / f"{name}.jsonl") for name in ("A", *CONTROLS)}
    references = {name: _references(asked, folder / "evaluation") for name, asked in requests.items()}
    chosen = [key for key in requests["A"] if _apart(references["A"][key], references["B"][key])][:EXAMPLES]
    examples = [_example(folder / "evaluation", key, requests, references) for key in chosen]
    panels = [evaluation_chart(measured, control, what) for control, what in CONTROLS.items()]
    absent = [f"{name}: {reason}" for name, reason in measured["B"]["absent"].items()]
    notes = _text(["Absent, with the reason that the result gives:", *absent], panels[0].shape[1])
    left, right = column(examples), column([*panels, notes])
    missing = [(0, max(left.shape[0], right.shape[0]) - side.shape[0]) for side in (left, right)]
    sides = zip((left, right), missing, strict=True)
    return np.concatenate([np.pad(s, (below, (0, 0), (0, 0)), constant_values=255) for s, below in sides], 1)


def measure_controls(movie: SmallMovie, folder: Path) -> dict[str, dict[str, Any]]:
    """For each control the ``result.json`` of the pictures that were painted as asked, measured against it. Each
    request asks for one object, whose reference is another picture of it."""
    variety = Variety(least=1, most=1, far=4.4, patterns=("plain",), described=False)
    write_synthetic(folder / "raw", MEASURED, [(SIDE, SIDE)], seed=4, variety=variety)
    entries = [json.loads(path.read_text()) for path in sorted((folder / "raw" / "captions").glob("*.json"))]
    for column_name in ("A", *CONTROLS):
        asked = [request(entries, place, column_name, folder) for place in range(len(entries))]
        listed = folder / f"{column_name}.jsonl"
        listed.write_text("".join(json.dumps(line) + "\n" for line in asked))
        run(sys.executable, "launch/sample.py", "--adapter", movie.adapter, "--base", movie.base,
            "--components", movie.encoders, "--requests", listed, "--steps", "28", "--guidance", "1",
            "--output", folder / column_name)  # fmt: skip
    for control in CONTROLS:
        run(sys.executable, "launch/evaluate.py", folder / "A", "--against", folder / control,
            "--truth", folder / "raw" / "images", "--metrics", ",".join(METRICS),
            "--output", folder / f"A-{control}")  # fmt: skip
    return {name: json.loads((folder / f"A-{name}" / "result.json").read_text()) for name in CONTROLS}


def request(entries: list[dict[str, Any]], place: int, column_name: str, folder: Path) -> dict[str, Any]:
    """The caption and box of a picture, with its object's reference in its partner: as it is (A), with the reference of
    the next pair (B), or at the place that a mirror would show (C)."""
    entry, number = entries[place], place ^ 1
    if column_name == "B":
        number = (number + 2) % len(entries)
    partner = entries[number]
    corners = ",".join(map(str, partner["objects"][0]["bbox"]))
    thing = {name: entry["objects"][0][name] for name in ("bbox", "caption", "category_name", "depth_label")}
    thing["reference"] = f"{folder / 'raw' / partner['image_path']}#{corners}"
    if column_name == "C":
        x1, y1, x2, y2 = thing["bbox"]
        thing["bbox"] = [1 - x2, y1, 1 - x1, y2]
    kept = {name: entry[name] for name in ("global_caption", "width", "height")}
    return kept | {"id": entry["image_id"], "objects": [thing]}


def evaluation_chart(measured: Mapping[str, dict[str, Any]], control: str, what: str, width: int = 560) -> np.ndarray:
    """The means of A and of one of the controls in ``measured``, and their differences by sample with the 95 %
    interval."""
    result = measured[control]
    paired = result["against"]["metrics"]
    image = Image.new("RGB", (width, 30 + 92 * len(paired)), "white")
    draw, font, small = ImageDraw.Draw(image), ImageFont.load_default(13), ImageFont.load_default(11)
    draw.text((12, 6), f"A: as asked, against {control}: {what}", "black", ImageFont.load_default(15))
    for row, (name, value) in enumerate(paired.items()):
        top, difference, mine = 32 + 92 * row, value["difference"], result["metrics"][name]
        means = f"A {mine['mean']:.3f}   {control} {result['against']['means'][name]:.3f}"
        interval = f"[{difference['low']:+.3f}, {difference['high']:+.3f}]"
        text = f"{name.upper()}, {value['unit']}:   {means}   (the picture's mean colour {mine['baseline']:.3f})"
        draw.text((12, top), text, "black", font)
        text = f"A - {control}:  {difference['mean']:+.3f}, 95 % interval {interval}"
        text += f";  A above in {value['above']} of {difference['n']} pictures"
        draw.text((12, top + 17), text, "black", font)
        place, line = axis([r["against"]["metrics"][name]["difference"] for r in measured.values()], width), top + 50
        draw.line([(12, line), (width - 12, line)], (200, 200, 200))
        draw.line([(place(0), line - 10), (place(0), line + 10)], "black", 2)
        draw.text((place(0), line + 10), "0", "black", small, anchor="ma")
        better = ("A", control) if value["better"] == "higher" else (control, "A")
        draw.text((12, line + 10), f"{better[1]} is better", "black", small)
        draw.text((width - 12, line + 10), f"{better[0]} is better", "black", small, anchor="ra")
        draw.line([(place(difference["low"]), line), (place(difference["high"]), line)], INTERVAL, 5)
        middle = place(difference["mean"])
        draw.ellipse([middle - 5, line - 5, middle + 5, line + 5], INTERVAL)
    return np.asarray(image)


def axis(differences: Sequence[Mapping[str, float]], width: int) -> Callable[[float], float]:
    """Value -> x in the charts of a metric: 0 in the middle, the intervals' farthest end at nine tenths of a side."""
    reach = max(abs(difference[end]) for difference in differences for end in ("low", "high")) or 1.0
    return lambda value: width / 2 + value / reach * 0.9 * (width / 2 - 12)


FIGURES: dict[str, tuple[str, Callable[[Path], np.ndarray]]] = {
    "movie": ("movie_post_production.png", draw_movie),
    "dance": ("dance_with_music.png", draw_dance),
    "world": ("fantasy_world.png", draw_world),
    "evaluation": ("evaluation.png", draw_evaluation),
}


def _requests(path: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in map(json.loads, path.read_text().splitlines())}


def _references(requests: Mapping[str, dict[str, Any]], folder: Path) -> dict[str, np.ndarray]:
    texts = {name: asked["objects"][0]["reference"] for name, asked in requests.items()}
    return {name: parse_reference(text, name, folder).cut() for name, text in texts.items()}


def _apart(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the mean colours differ so much that one sees it."""
    return bool(np.linalg.norm(one.mean((0, 1)) - other.mean((0, 1))) > 60)


def _example(folder: Path, name: str, requests: Mapping, references: Mapping) -> np.ndarray:
    """References, the true picture, what was painted under each condition, and A less that; boxes as asked."""
    painted = {title: _read(folder / title / name / "picture.png") for title in requests}
    box = requests["A"][name]["objects"][0]["bbox"]
    shown = [titled(_boxed(_read(folder / "raw" / "images" / f"{name}.png"), box), "true picture")]
    for title, picture in painted.items():
        if title != "C":
            shown.append(titled(_panel(references[title][name]), f"reference of {title}"))
        shown.append(titled(_boxed(picture, requests[title][name]["objects"][0]["bbox"]), f"{title} painted"))
        if title != "A":
            change = 128 + 2.0 * (painted["A"].astype(float) - picture)
            shown.append(titled(_boxed(change.clip(0, 255).astype(np.uint8), box), f"A less {title}"))
    return np.concatenate(shown, 1)


def _read(path: Path) -> np.ndarray:
    return np.asarray(read_picture(path))


def _boxed(picture: np.ndarray, box: list[float]) -> np.ndarray:
    image = Image.fromarray(_panel(picture))
    ImageDraw.Draw(image).rectangle([round(corner * PANEL) for corner in box], outline="black")
    return np.asarray(image)


def _text(lines: list[str], width: int, size: int = 12) -> np.ndarray:
    """Lines in black on white, wrapped where they are longer than the picture."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, width // 7, subsequent_indent="    ")]
    image = Image.new("RGB", (width, (size + 5) * len(wrapped) + 8), "white")
    for row, line in enumerate(wrapped):
        ImageDraw.Draw(image).text((12, 4 + row * (size + 5)), line, "black", ImageFont.load_default(size))
    return np.asarray(image)


def _panel(picture: np.ndarray) -> np.ndarray:
    return resized(picture, PANEL, PANEL, nearest=True)


def _bytes(picture: np.ndarray) -> np.ndarray:
    """0..1 -> uint8."""
    return picture if picture.dtype == np.uint8 else (picture * 255).round().astype(np.uint8)


def _row(pictures, title: str) -> np.ndarray:
    return titled(np.concatenate([_panel(_bytes(picture)) for picture in pictures], 1), title)


def _bars(values: np.ndarray, width: int, height: int = 32) -> np.ndarray:
    """uint8 [height, width, 3]: a bar for each value, the largest as high as the picture."""
    tall = (values / values.max() * height).round()
    bars = np.where(np.arange(height)[::-1, None, None] < tall[None, :, None], (235, 120, 40), BACKGROUND)
    return resized(bars.astype(np.uint8), width, height, nearest=True)


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=FIGURES, help="one of them")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    options = parser.parse_args()
    for name in [options.only] if options.only else FIGURES:
        file_name, draw = FIGURES[name]
        with tempfile.TemporaryDirectory(prefix="stagecoach-figures-") as folder:
            picture = draw(Path(folder))
        with atomic_file(options.output / file_name) as file:
            Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return 0


if __name__ == "__main__":
    run_main(main)
