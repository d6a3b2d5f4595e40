"""Members of a sample to arrays."""

import gc
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from stagecoach.data.files import DamagedError
from stagecoach.data.format.decode import decode_sample
from stagecoach.data.format.schema import Field, SampleSchema, SchemaError

HEAD = b'{"schema": "t", "version": 1, "dtypes": {"x": "f32"}, "meta": {}}'
SCHEMA = SampleSchema("t", 1, (Field("x", "f32", ("rows", "columns")),))


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=True)
    return buffer.getvalue()


def decode(data: bytes, schema: SampleSchema = SCHEMA) -> np.ndarray:
    members = {"json": memoryview(HEAD), "x.npy": memoryview(data)}
    return decode_sample(schema, members, "set.tar: sample 'a'")[0]["x"]


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.booleans(),
    st.sampled_from([(1, 0), (2, 0)]),
)
def test_arrays_in_either_order_and_version_come_out_as_they_were_written(array, fortran, version):
    written = np.asfortranarray(array) if fortran else array
    np.testing.assert_array_equal(decode(npy(written, version)), array)


@pytest.mark.parametrize("spec", [((), ()), ((3,), ("a",)), ((2, 3, 4, 1), ("a", "b", "c", "d"))])
def test_any_number_of_dimensions_is_read(spec):
    shape, declared = spec
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(decode(npy(array), SampleSchema("t", 1, (Field("x", "f32", declared),))), array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:40],
        lambda data: data[:-1],
        lambda data: data + b"0",
        lambda data: b"X" + data[1:],
        lambda data: data.replace(b"<f4", b"<f5"),
        lambda data: data.replace(b"shape", b"shope"),
        lambda data: data[:8] + b"\xff\xff" + data[10:],
        lambda data: data.replace(b"(2, 3)", b"(9, 9)"),
    ],
)
def test_a_damaged_header_or_length_is_named(damage):
    data = npy(np.ones((2, 3), np.float32))
    with pytest.raises(DamagedError, match=r"set.tar: sample 'a': 'x.npy' is not a readable .npy"):
        decode(damage(data))


def test_objects_are_not_unpickled():
    with pytest.raises(DamagedError, match="plain numbers"):
        decode(npy(np.array([{}], dtype=object)))


@pytest.fixture
def eager_switches():
    """Threads that change places as often as they can, in the middle of garbage collections too."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    gc.callbacks.append(_give_way)
    yield
    gc.callbacks.remove(_give_way)
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def _give_way(*_) -> None:
    time.sleep(0)


def test_many_threads_decode_at_once(eager_switches):
    """NumPy's reader fails here on CPython 3.11 (SystemError: AST constructor recursion depth mismatch)."""
    data = npy(np.ones((2, 3), np.float32))
    with ThreadPoolExecutor(4) as pool:
        assert all(array.shape == (2, 3) for array in pool.map(decode, [data] * 3000))


# -- samples of others ------------------------------------------------------------------------------------------------

FOREIGN = SampleSchema("t", 1, (Field("x", "bf16", ("n",)), Field("frame", "image", (2, 3, 3), optional=True)))


def foreign(**members: bytes) -> tuple[dict[str, np.ndarray], dict]:
    named = {name.replace("_", "."): memoryview(data) for name, data in members.items()}
    return decode_sample(FOREIGN, named, "set.tar: sample 'a'", heads=False)


def test_uint16_of_others_is_taken_for_the_bits_of_bf16():
    bits = np.array([0x3F80, 0x4000], np.uint16)
    arrays, meta = foreign(x_npy=npy(bits))
    np.testing.assert_array_equal(arrays["x"], bits, strict=True)
    assert meta == {}


@pytest.mark.parametrize("dtype", ["float16", "float32", "int16", ">u2"])
def test_other_numbers_where_bf16_is_expected_are_named(dtype):
    with pytest.raises(SchemaError, match=rf"field 'x' holds {np.dtype(dtype)}, expected uint16 \(bf16\)"):
        foreign(x_npy=npy(np.zeros(2, dtype)))


@pytest.mark.parametrize(
    ("json", "meta"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'"word"', {"json": "word"}),
        (HEAD, {"schema": "t", "version": 1, "dtypes": {"x": "f32"}, "meta": {}}),
    ],
)
def test_json_of_others_is_meta_whatever_it_holds(json, meta):
    assert foreign(x_npy=npy(np.zeros(2, np.uint16)), json=json)[1] == meta


@pytest.mark.parametrize("json", [b"{", b"\xff", b"[" * 100_000])
def test_json_of_others_that_cannot_be_read_is_named(json):
    with pytest.raises(SchemaError, match=r"set\.tar: sample 'a': its \.json cannot be read"):
        foreign(x_npy=npy(np.zeros(2, np.uint16)), json=json)


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "frame_jpeg"), ("JPEG", "frame_jpg"), ("PNG", "frame_png")])
def test_pictures_of_others_may_have_any_of_their_extensions(kind, name):
    picture = io.BytesIO()
    Image.new("RGB", (3, 2), (9, 9, 9)).save(picture, kind)
    arrays, _ = foreign(x_npy=npy(np.zeros(2, np.uint16)), **{name: picture.getvalue()})
    assert arrays["frame"].shape == (2, 3, 3)


def test_pictures_of_others_come_out_as_they_are_seen():
    """Turned by EXIF, transparency on white, 16 bits scaled to 8."""
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    ramp = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    for image, expected in ((clear, np.full((4, 2), 255)), (ramp, np.array([[0], [128], [255]]))):
        buffer = io.BytesIO()
        image.save(buffer, "png", exif=turned)
        schema = SampleSchema("t", 1, (Field("x", "image", ("H", "W", 3)),))
        found = decode_sample(schema, {"x.png": memoryview(buffer.getvalue())}, "set.tar: sample 'a'", heads=False)[0]
        np.testing.assert_array_equal(found["x"], np.repeat(expected[..., None], 3, 2))


def test_a_field_that_the_head_lists_and_the_members_lack_is_damage():
    """As after an index lost the row of an optional field."""
    schema = SampleSchema("t", 1, (Field("x", "f32", ("n",), optional=True),))
    with pytest.raises(DamagedError, match=r"set\.tar: sample 'a': fields \['x'\] of its head are not among"):
        decode_sample(schema, {"json": memoryview(HEAD)}, "set.tar: sample 'a'")


@pytest.mark.parametrize(
    "head",
    [
        b'{"schema": "t", "version": 1, "dtypes": 3, "meta": {}}',
        b"[1]",
        b"null",
        b'{"schema": "t", "version": 1, "dtypes": {}, "meta": "word"}',
        b"[" * 100_000,
    ],
)
def test_a_head_of_another_form_is_named(head):
    with pytest.raises(SchemaError, match="not a sample's head"):
        decode_sample(SCHEMA, {"json": memoryview(head)}, "set.tar: sample 'a'")
