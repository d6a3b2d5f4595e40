"""From the members of a sample to arrays: the head, .npy files as views on their bytes, pictures."""

import io
import json
import re
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from PIL import Image

from stagecoach.data.files import DamagedError
from stagecoach.data.format.schema import Field, SampleSchema, SchemaError, check_sample
from stagecoach.data.pictures import to_rgb

NPY_MAGIC = b"\x93NUMPY"
NPY_HEADER = re.compile(
    rb"\{\s*'descr':\s*'(?P<descr>[<>|=][biufc]\d+)',\s*'fortran_order':\s*(?P<order>True|False),"
    rb"\s*'shape':\s*\((?P<shape>\s*(?:\d+\s*,\s*)*(?:\d+)?\s*)\),?\s*\}\s*"
)
"""The header of an array of plain numbers, as NumPy writes it (NEP 1)."""

IMAGES = ("jpg", "jpeg", "png")


def decode_sample(
    schema: SampleSchema, members: Mapping[str, memoryview], where: str, heads: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by field name and the meta of a sample. ``members``: bytes by name without the key (``latent.npy``).

    Arrays have the dtypes of the file (bf16 as uint16) and are views on ``members``, but for pictures (uint8
    ``[H, W, 3]``). Members that the schema does not know are passed over. ``heads=False`` is for samples that another's
    tool wrote: they tell nothing of their schema, and their ``.json``, if there is one, is the meta (under the name
    ``json`` where it is not an object); uint16 is taken for the bits of bf16. Raises ``SchemaError`` if the sample does
    not fit the schema, ``DamagedError`` if a member cannot be decoded; both start with ``where``.
    """
    if heads:
        head = _decode_head(members.get("json"), schema, where)
    else:
        head = {
            "dtypes": {spec.name: spec.dtype for spec in schema.fields},
            "meta": _decode_meta(members.get("json"), where),
        }
    arrays = {}
    for spec in schema.fields:
        name = next((name for name in member_names(spec) if name in members), None)
        if name is None:
            continue
        decode = _decode_image if spec.dtype == "image" else _decode_npy
        arrays[spec.name] = decode(members[name], f"{where}: {name!r}")
        written = head["dtypes"].get(spec.name)
        if written != spec.dtype:
            raise SchemaError(
                f"{where}: field {spec.name!r} was written as {written}, expected {spec.dtype}; rebuild the shards"
            )
    check_sample(schema, arrays, where)
    gone = [] if not heads else [f.name for f in schema.fields if f.name in head["dtypes"] and f.name not in arrays]
    if gone:
        raise DamagedError(
            f"{where}: fields {gone} of its head are not among its members {sorted(members)}, expected "
            f"all of them; the index or the tar is damaged, run build_shards.py repair"
        )
    return arrays, head["meta"]


def member_names(spec: Field) -> list[str]:
    """The names under which a field may stand in a tar."""
    return [f"{spec.name}.{kind}" for kind in (IMAGES if spec.dtype == "image" else ("npy",))]


def _decode_head(data: memoryview | None, schema: SampleSchema, where: str) -> dict[str, Any]:
    if data is None:
        raise SchemaError(f"{where}: no .json member, expected one with the schema's name and version")
    try:
        head = json.loads(bytes(data))
        found = head["schema"], head["version"]
        head = {**head, "dtypes": dict(head["dtypes"]), "meta": dict(head["meta"])}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SchemaError(
            f"{where}: its .json is not a sample's head ({type(error).__name__}: {error}), expected "
            f"schema, version, dtypes and meta"
        ) from error
    if found != (schema.name, schema.version):
        raise SchemaError(
            f"{where}: schema {found[0]!r} version {found[1]}, expected {schema.name!r} version "
            f"{schema.version}; rebuild the shards"
        )
    return head


def has_head(data: bytes | memoryview | None) -> bool:
    """Whether this ``.json`` member is a head as our writer makes it, rather than another's meta."""
    try:
        head = json.loads(bytes(data)) if data is not None else None
    except (ValueError, RecursionError):
        return False
    return isinstance(head, dict) and {"schema", "version", "dtypes", "meta"} <= set(head)


def _decode_meta(data: memoryview | None, where: str) -> dict[str, Any]:
    try:
        meta = json.loads(bytes(data)) if data is not None else {}
    except (ValueError, RecursionError) as error:
        raise SchemaError(
            f"{where}: its .json cannot be read ({type(error).__name__}: {error}), expected JSON; write "
            f"the tar again or leave the sample out with --skip-bad"
        ) from error
    return meta if isinstance(meta, dict) else {"json": meta}


def _decode_npy(data: memoryview, where: str) -> np.ndarray:
    try:
        start, dtype, shape, fortran = npy_header(data)
        array = np.frombuffer(data, dtype, prod(shape), start)
        if start + array.nbytes != len(data):
            raise ValueError(f"{len(data) - start} bytes of numbers, where its header tells of {array.nbytes}")
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{where} is not a readable .npy file ({error}); build the shard again") from error
    return array.reshape(shape, order="F" if fortran else "C")


def npy_header(data: memoryview) -> tuple[int, np.dtype, tuple[int, ...], bool]:
    """Offset of the numbers, their dtype and shape, and whether they lie in Fortran order.

    NumPy's own reader calls ``ast.literal_eval``, which CPython 3.11 does not survive in two threads at once (issue
    106905: a SystemError, once in some ten thousand files). A regular expression does, and takes a tenth of the time.
    Raises ``ValueError`` for anything but a plain array of numbers.
    """
    version = bytes(data[6:8])
    if bytes(data[:6]) != NPY_MAGIC or version not in (b"\x01\x00", b"\x02\x00"):
        raise ValueError(f"it starts with {bytes(data[:8])!r}, expected the magic and version 1 or 2 of the format")
    width = 2 if version == b"\x01\x00" else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = bytes(data[8 + width : start])
    found = NPY_HEADER.fullmatch(header) if start <= len(data) else None
    if found is None:
        raise ValueError(f"its header is {header[:120]!r}, expected descr, fortran_order and shape of plain numbers")
    shape = tuple(int(number) for number in found["shape"].split(b",") if number.strip())
    return start, np.dtype(found["descr"].decode()), shape, found["order"] == b"True"


def _decode_image(data: memoryview, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.asarray(to_rgb(image, where))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedError(f"{where} is not a readable picture ({error}); build the shard again") from error
