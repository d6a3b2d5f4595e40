"""Moments that some ranks wrote under one layout are read by other ranks under another."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.data.files import DamagedError
from stagecoach.data.tensors import save_tensors
from stagecoach.trainer.checkpointing.layout import MOMENTS, Fragment
from stagecoach.trainer.checkpointing.restore import _load_parts
from tests.trainer.checkpointing.layouts import CUTS, Cut, cut_each


def scatter(whole: dict[str, torch.Tensor], flats: list[int], fragments: dict[str, Fragment]) -> list[torch.Tensor]:
    parts = [torch.full((size,), -1.0) for size in flats]
    for name, (group, offset, start, numel) in fragments.items():
        parts[group][offset : offset + numel] = whole[name][start : start + numel]
    return parts


def assemble(flats: list[torch.Tensor], fragments: dict[str, Fragment], whole: dict[str, torch.Tensor]) -> None:
    for name, (group, offset, start, numel) in fragments.items():
        whole[name][start : start + numel] = flats[group][offset : offset + numel]


def write(folder: Path, layout: Cut, moments: dict[str, dict[str, torch.Tensor]]) -> list[Path]:
    files = []
    for rank, (flats, fragments) in enumerate(layout):
        tensors = {
            f"{moment}.{group}": part
            for moment, whole in moments.items()
            for group, part in enumerate(scatter(whole, flats, fragments))
        }
        files.append(folder / f"rank_{rank:05d}.safetensors")
        save_tensors(tensors, files[-1], {"fragments": json.dumps(fragments)})
    return files


RANKS = st.integers(1, 5)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    data=st.data(),
    before=st.tuples(CUTS, RANKS),
    after=st.tuples(CUTS, RANKS),
)
def test_every_element_is_found_again_between_any_two_layouts(sizes, data, before, after):
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    moments = {m: {f"p{i}": torch.rand(size) for i, size in enumerate(sizes)} for m in MOMENTS}
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), before[0](sizes, groups, before[1]), moments)
        found = {m: {name: torch.full_like(part, -2.0) for name, part in whole.items()} for m, whole in moments.items()}
        for flats, fragments in after[0](sizes, groups, after[1]):
            mine = {m: [torch.zeros(size) for size in flats] for m in MOMENTS}
            _load_parts(files, fragments, mine, Path(folder))
            for m in MOMENTS:
                assemble(mine[m], fragments, found[m])
        assert all(found[m][name].equal(moments[m][name]) for m in MOMENTS for name in moments[m])


def test_moments_that_are_nowhere_are_named(tmp_path):
    moments = {m: {"p0": torch.rand(10), "p1": torch.rand(3)} for m in MOMENTS}
    layout = cut_each([10, 3], [0, 0], 2)
    files = write(tmp_path, layout, moments)
    mine = {m: [torch.zeros(13)] for m in MOMENTS}
    fragments = {"p0": Fragment(0, 0, 0, 10), "p1": Fragment(0, 10, 0, 3)}
    with pytest.raises(DamagedError, match=r"holds no moments of 5 elements of p0 \(and of 1 other"):
        _load_parts(files[:1], fragments, mine, tmp_path)
    save_tensors({"exp_avg.0": torch.zeros(3)}, files[1], {"fragments": json.dumps({"p0": [0, 0]})})
    with pytest.raises(DamagedError, match=r"rank_00001\.safetensors: not a part of an optimizer's state"):
        _load_parts(files, fragments, mine, tmp_path)
