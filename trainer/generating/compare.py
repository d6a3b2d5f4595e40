"""Weights side by side: the same requests and noise answered by each, and one page of all answers."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stagecoach.data.files import atomic_file
from stagecoach.models.generation import GenerationOptions, Request
from stagecoach.models.weights import Weights
from stagecoach.trainer.distributed import World, on_first
from stagecoach.trainer.generating.columns import Column
from stagecoach.trainer.generating.listing import Listed
from stagecoach.trainer.generating.page import Cell, Row, make_page
from stagecoach.trainer.generating.sample import BASE, Chosen, Summary, locked_output, sample
from stagecoach.trainer.generating.sealed import read_result

log = logging.getLogger(__name__)

PAGE, SAMPLES = "compare.html", "samples"


def compare(
    world: World,
    columns: Sequence[Column],
    chosen: Chosen,
    options: GenerationOptions,
    listed: Sequence[Listed],
    output: Path,
    seeds: Sequence[int],
    remake: bool = False,
    title: str = "Comparison",
) -> Summary:
    """Answer the requests with each seed by each column's weights, opened one after the other, into
    ``output/samples/<column>/``, and write ``output/compare.html``. Every rank calls it.

    ``chosen`` says what columns do not, family and size where all are the base; else the base is taken at the config of
    the first other column. A request that one column cannot answer is an empty cell there.
    """
    chosen = _of_one_family(columns, chosen)
    total = Summary()
    with locked_output(world, output):
        for column in columns:
            folder = output / SAMPLES / column.folder

            def place(request: Request, folder: Path = folder) -> Path:
                return folder / request.id / f"seed{request.seed}"

            own = replace(chosen, adapter=column.weights, which=column.which)
            found = sample(world, own, options, listed, place, remake, seeds, column.name)
            total.made += found.made
            total.kept += found.kept
            total.failed += [f"{column.name}: {line}" for line in found.failed]
            gc.collect()  # the network of one column is gone before the next is loaded
            if world.device.type == "cuda":
                torch.cuda.empty_cache()
        on_first(world, _write, columns, output, title, {Path(f) for f in (*total.made, *total.kept)})
    return total


def _of_one_family(columns: Sequence[Column], chosen: Chosen) -> Chosen:
    """``chosen`` with the family, size and config of the columns. Raises ``ValueError`` where they are of several
    families."""
    weights: list[Weights] = [
        replace(chosen, adapter=column.weights, which=column.which).open()
        for column in columns
        if column.weights != BASE
    ]
    if not weights:
        return chosen
    found = {w.card.family for w in weights}
    if len(found) > 1:
        raise ValueError(f"columns of families {', '.join(sorted(found))} found, expected one family")
    first = weights[0]
    return replace(chosen, family=first.card.family, size=first.size, config=first.config)


def _write(columns: Sequence[Column], output: Path, title: str, answered: set[Path]) -> None:
    """The page of the folders ``answered``."""
    folders = {column.name: output / SAMPLES / column.folder for column in columns}
    names = sorted({f"{path.parent.name}/{path.name}" for path in answered})
    rows = []
    for name in names:
        cells, entry = [], {}
        for folder in folders.values():
            if folder / name not in answered:
                cells.append(Cell(nothing="not answered; see the log"))
                continue
            result = read_result(folder / name)
            entry = result["request"]["entry"]
            note = f"{result['request']['steps']} steps, {result['seconds']:.1f} s"
            cells.append(Cell([folder / name / file for file in result["shown"]], note))
        rows.append(Row(name.replace("/", ", "), entry, cells))
    heads = [(c.name, f"{c.weights}{', average' if c.which == 'ema' else ''}") for c in columns]
    page = make_page(title, heads, rows)
    with atomic_file(output / PAGE, "w") as file:
        file.write(page)
    log.info(f"{output / PAGE}: {len(rows)} rows of {len(columns)}, {len(page) / 1e6:,.1f} MB")
