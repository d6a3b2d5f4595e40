"""From the members of a sample to arrays: the head, .npy files as views on their bytes, pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from PIL import Image

from data.files import DamagedError
from data.schema import SampleSchema, SchemaError, check_sample

NPY_HEADER = 12 + 10_000
"""Magic, version and length, then the longest header that NumPy parses without being told to trust the file."""

IMAGES = ("jpg", "png")


def decode_sample(schema: SampleSchema, members: Mapping[str, memoryview],
                  where: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by field name and the meta of a sample. ``members``: bytes by name without the key (``latent.npy``).

    Arrays have the dtypes of the file (bf16 as uint16) and are views on ``members``, but for pictures (uint8
    ``[H, W, 3]``). Members that the schema does not know are passed over. Raises ``SchemaError`` if the sample does not
    fit the schema, ``DamagedError`` if a member cannot be decoded; both start with ``where``.
    """
    head = _decode_head(members.get("json"), schema, where)
    arrays = {}
    for spec in schema.fields:
        kinds = IMAGES if spec.dtype == "image" else ("npy",)
        name = next((f"{spec.name}.{kind}" for kind in kinds if f"{spec.name}.{kind}" in members), None)
        if name is None:
            continue
        decode = _decode_image if spec.dtype == "image" else _decode_npy
        arrays[spec.name] = decode(members[name], f"{where}: {name!r}")
        written = head["dtypes"].get(spec.name)
        if written != spec.dtype:
            raise SchemaError(f"{where}: field {spec.name!r} was written as {written}, expected {spec.dtype}; rebuild "
                              f"the shards")
    check_sample(schema, arrays, where)
    return arrays, head["meta"]


def _decode_head(data: memoryview | None, schema: SampleSchema, where: str) -> dict[str, Any]:
    if data is None:
        raise SchemaError(f"{where}: no .json member, expected one with the schema's name and version")
    try:
        head = json.loads(bytes(data))
        found = head["schema"], head["version"]
        dict(head["dtypes"]), dict(head["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"{where}: its .json is not a sample's head ({type(error).__name__}: {error}), expected "
                          f"schema, version, dtypes and meta") from error
    if found != (schema.name, schema.version):
        raise SchemaError(f"{where}: schema {found[0]!r} version {found[1]}, expected {schema.name!r} version "
                          f"{schema.version}; rebuild the shards")
    return head


def _decode_npy(data: memoryview, where: str) -> np.ndarray:
    header = io.BytesIO(data[:NPY_HEADER])
    try:
        version = np.lib.format.read_magic(header)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(header)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects")
        array = np.frombuffer(data, dtype, prod(shape), header.tell())
        if header.tell() + array.nbytes != len(data):
            raise ValueError(f"{len(data) - header.tell()} bytes of numbers, where its header tells of {array.nbytes}")
    except ValueError as error:
        raise DamagedError(f"{where} is not a readable .npy file ({error}); build the shard again") from error
    return array.reshape(shape, order="F" if fortran else "C")


def _decode_image(data: memoryview, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedError(f"{where} is not a readable picture ({error}); build the shard again") from error
