"""Weights: one content is one file, whoever writes it; a damaged file is named in one sentence."""

import hashlib
import json
import os
import struct
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stagecoach.data import local_files, tensors
from stagecoach.data.local_files import UnreachableError
from stagecoach.data.reading import DamagedError
from stagecoach.data.tensors import hash_tensors, open_tensors, read_all, save_tensors

TENSORS = {"b.weight": torch.arange(6.0).reshape(2, 3), "a é": torch.ones(3, dtype=torch.bfloat16)}
METADATA = {f"key {i}": f'é "{i}"\n\x01' for i in range(9)}

SAVES = """
import hashlib, sys, pathlib, torch
from stagecoach.data.tensors import save_tensors
from tests.data.test_tensors import METADATA, TENSORS
path = pathlib.Path(sys.argv[1])
for i in range(40):
    order = sorted(METADATA, key=lambda key: hash((key, i)))
    save_tensors(dict(reversed(TENSORS.items())) if i % 2 else TENSORS, path, {key: METADATA[key] for key in order})
    print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_eighty_saves_in_two_processes_give_the_same_bytes(tmp_path):
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SAVES, str(tmp_path / "a.safetensors")],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.update(done.stdout.split())
    save_tensors(TENSORS, tmp_path / "a.safetensors", METADATA)
    assert found == {hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()}


def test_what_was_written_in_order_is_read_by_the_library(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(TENSORS, path, METADATA)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == METADATA
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items())


def test_the_hash_is_of_names_dtypes_shapes_and_bytes(tmp_path):
    expected = hash_tensors(TENSORS)
    assert hash_tensors(dict(reversed(TENSORS.items()))) == expected
    assert hash_tensors({name: value.t().contiguous().t() for name, value in TENSORS.items()}) == expected
    for name, value in TENSORS.items():
        save_tensors({name: value}, tmp_path / f"{len(name)}.safetensors", METADATA)
    assert hash_tensors(read_all(sorted(tmp_path.iterdir()))) == expected
    weight = TENSORS["b.weight"]
    for other in (weight + 1e-7, weight.reshape(3, 2), weight.reshape(6), weight.view(torch.int32)):
        assert hash_tensors(TENSORS | {"b.weight": other}) != expected
    assert hash_tensors({"c": weight, "a é": TENSORS["a é"]}) != expected
    assert hash_tensors({"a": torch.zeros(0, 3), "b": torch.tensor(1.0)}) != hash_tensors({"a": torch.zeros(3, 0)})


def header(content, data: bytes = b"", size: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        header(b"{}", size=2**60),
        header(b"{}", size=2**64 - 1),
        header(b"{}", size=99_000_000),
        header(b"[" * 50_000),
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"abcd"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"abcd"),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"abcd"),
        header({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, b"abcd"),
        "folder",
        "fifo",
        "missing",
    ],
)
def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content == "folder":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    elif content != "missing":
        path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"a\.safetensors: "):
        read_all([path])
    with pytest.raises(DamagedError, match=r"a\.safetensors: "), open_tensors(path) as file:
        file.keys()


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"):
        save_tensors(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(DamagedError, match=r"b\.safetensors: holds 'a é', which another file"):
        read_all(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("failure", [FileNotFoundError("No such file"), RuntimeError("Stale file handle (116)")])
def test_a_moment_of_trouble_in_the_library_is_tried_again_and_never_called_damage(tmp_path, monkeypatch, failure):
    path, calls = tmp_path / "a.safetensors", []
    save_tensors(TENSORS, path)

    def in_trouble(*arguments, **named):
        calls.append(1)
        if len(calls) <= troubles:
            raise failure
        return safe_open(*arguments, **named)

    monkeypatch.setattr(local_files, "FIRST_DELAY", 0)
    monkeypatch.setattr(tensors, "safe_open", in_trouble)
    troubles = 2
    assert read_all([path]).keys() == TENSORS.keys()
    troubles = 100
    with pytest.raises(UnreachableError, match=rf"{path}: not read in 7 attempts .*{failure.args[0][:7]}"):
        read_all([path])
