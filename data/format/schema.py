"""What a sample must hold: named fields with dtypes and symbolic shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

DTYPES: dict[str, np.dtype] = {
    "bf16": np.dtype("uint16"),
    "f16": np.dtype("float16"),
    "f32": np.dtype("float32"),
    "f64": np.dtype("float64"),
    "u8": np.dtype("uint8"),
    "u16": np.dtype("uint16"),
    "i64": np.dtype("int64"),
}
"""True dtype -> dtype in the .npy file. bf16 has no NumPy type; its bits are stored as uint16."""


EXPONENTS = {"bf16": 0x7F80, "f16": 0x7C00, "f32": 0x7F800000, "f64": 0x7FF0000000000000}
"""The bits of the exponent. All set: infinite or not a number."""
AT_ONCE = 1 << 16
"""Numbers that are looked at together: as many as stay in a core's cache."""


@dataclass(frozen=True)
class Field:
    """One field of a sample. A dimension is a number or a name; equal names are equal sizes within a sample, and across
    the samples of a batch unless ``pad`` is the index of the one dimension that collation fills with zeros."""

    name: str
    dtype: Literal["bf16", "f16", "f32", "f64", "u8", "u16", "i64", "image"]
    shape: tuple[int | str, ...]
    pad: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class SampleSchema:
    """The fields of a family's samples. ``version`` is written into every sample and checked when it is read.
    ``window``: name of the dimension along which a sample may be cut into windows (``data/streaming/windows.py``)."""

    name: str
    version: int
    fields: tuple[Field, ...]
    window: str | None = None

    def field(self, name: str) -> Field | None:
        return next((f for f in self.fields if f.name == name), None)

    @property
    def dims(self) -> tuple[str, ...]:
        """The named dimensions in the order in which the fields bring them up."""
        return tuple(dict.fromkeys(dim for f in self.fields for dim in f.shape if isinstance(dim, str)))

    @property
    def bucket_dims(self) -> tuple[str, ...]:
        """The named dimensions that all samples of a batch must agree in: not those that collation pads or that windows
        are cut along."""
        fixed = {dim for f in self.fields for axis, dim in enumerate(f.shape) if axis != f.pad}
        return tuple(dim for dim in self.dims if dim in fixed and dim != self.window)


class SchemaError(ValueError):
    """A sample does not fit its schema."""


class NotFiniteError(SchemaError):
    """A field holds what is infinite or not a number."""


def check_sample(schema: SampleSchema, arrays: dict[str, np.ndarray], where: str) -> None:
    """Compare a decoded sample with its schema: fields, dtypes, sizes, finite numbers. Raises ``SchemaError``: one
    sentence naming ``where``, the field, what was found and what was expected."""
    sizes: dict[str, int] = {}
    for spec in schema.fields:
        array = arrays.get(spec.name)
        if array is None:
            if spec.optional:
                continue
            raise SchemaError(
                f"{where}: field {spec.name!r} is missing, expected {spec.dtype} {_shape(spec.shape)}; "
                f"found fields {sorted(arrays)}"
            )
        expected = np.dtype("uint8") if spec.dtype == "image" else DTYPES[spec.dtype]
        if array.dtype != expected:
            raise SchemaError(f"{where}: field {spec.name!r} holds {array.dtype}, expected {expected} ({spec.dtype})")
        if array.ndim != len(spec.shape):
            raise SchemaError(f"{where}: field {spec.name!r} has shape {array.shape}, expected {_shape(spec.shape)}")
        for size, dim in zip(array.shape, spec.shape, strict=True):
            known = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
            if size != known:
                named = f" with {dim} = {known}" if isinstance(dim, str) else ""
                raise SchemaError(
                    f"{where}: field {spec.name!r} has shape {array.shape}, expected {_shape(spec.shape)}{named}"
                )
        if spec.dtype in EXPONENTS:
            check_finite(array, spec.dtype, f"{where}: field {spec.name!r}")


def check_finite(array: np.ndarray, dtype: str, where: str) -> None:
    """Raises ``NotFiniteError``, naming value and place, where an array of a floating ``dtype`` (of ``DTYPES``) holds
    what is not finite. By its bits, at 4 to 9 GB/s a core (``np.isfinite`` of float16: 0.7)."""
    ones = EXPONENTS[dtype]
    flat = array.reshape(-1).view(f"u{array.itemsize}")
    for first in range(0, flat.size, AT_ONCE):
        if (flat[first : first + AT_ONCE] & ones).max() == ones:
            break
    else:
        return
    bad = (flat & ones) == ones
    place = int(bad.argmax())
    value = _number(flat[place], dtype)
    where = f"{where} holds {value} at {list(map(int, np.unravel_index(place, array.shape)))}"
    raise NotFiniteError(
        f"{where}, and {bad.sum():,} of its {flat.size:,} numbers are not finite, expected all to be; make the sample "
        "again from clean data or leave it out"
    )


def _number(bits: np.unsignedinteger, dtype: str) -> float:
    if dtype == "bf16":
        return float((np.uint32(bits) << 16).view(np.float32))
    return float(bits.view(f"f{bits.itemsize}"))


def sample_sizes(schema: SampleSchema, shapes: Mapping[str, Sequence[int]]) -> list[int | None]:
    """Size of each of ``schema.dims``, from the shapes of a sample's fields; None where no field present has it."""
    sizes = {
        dim: size for f in schema.fields if f.name in shapes for dim, size in zip(f.shape, shapes[f.name], strict=True)
    }
    return [sizes.get(dim) for dim in schema.dims]


def _shape(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
