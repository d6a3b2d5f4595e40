"""A safetensors file written piece by piece is the library's, byte for byte."""

import errno
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from stagecoach.data import tensor_file
from stagecoach.data.tensor_file import TensorFile
from stagecoach.data.tensors import save_tensors

SHAPES = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable()),
    st.lists(st.integers(0, 5), max_size=3),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3), st.randoms())
def test_pieces_in_any_order_make_the_file_that_the_library_makes(tmp_path_factory, shapes, metadata, chance):
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_tensors(tensors, folder / "expected", metadata)
    pieces = [
        (name, start, tensor.flatten()[start : start + 7])
        for name, tensor in tensors.items()
        for start in range(0, tensor.numel(), 7)
    ]
    chance.shuffle(pieces)
    file = TensorFile(folder / "found", shapes, metadata)
    for name, start, piece in pieces:
        file.write(name, start, memoryview(piece.numpy().tobytes()))
    file.close()
    assert (folder / "found").read_bytes() == (folder / "expected").read_bytes()


def test_a_write_that_the_system_cuts_short_goes_on(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(tensor_file.os, "pwrite", lambda file, values, at: pwrite(file, values[:3], at))
    values = torch.randn(11)
    file = TensorFile(tmp_path / "x", {"x": (11,)})
    file.write("x", 0, memoryview(values.numpy().tobytes()))
    file.close()
    with safe_open(tmp_path / "x", framework="pt") as handle:
        assert handle.get_tensor("x").equal(values)


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OSError, match=os.strerror(errno.EEXIST)):
        TensorFile(tmp_path / "x", {"x": (1,)})
    assert (tmp_path / "x").read_text() == "mine"
