"""What is read is what was written, and each kind of damage is one sentence that names the file and the sample."""

import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from stagecoach.data.files import DamagedError, sha256_file, write_json
from stagecoach.data.format.schema import DTYPES, Field, SampleSchema, SchemaError
from stagecoach.data.format.shards import ShardWriter, index_path, read_manifest, write_index, write_manifest
from stagecoach.data.streaming.dataset import ShardSet, verify_shards
from tests.data.tar_index import index_tar


@pytest.fixture
def shards(build, tmp_path):
    return build(tmp_path, samples=8)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def write_foreign(tmp_path):
    """A set of one sample "c" with these members, written by another's tool and indexed by us."""

    def write(fields, members):
        schema = SampleSchema("tiny", 1, fields)
        head = {"schema": "tiny", "version": 1, "dtypes": {f.name: f.dtype for f in fields}, "meta": {}}
        path = tmp_path / "theirs.tar"
        with wds.TarWriter(str(path), encoder=False) as writer:
            writer.write({"__key__": "c", "json": json.dumps(head).encode(), **members})
        index = index_tar(path)
        entry = {
            "name": path.name,
            "samples": 1,
            "bytes": index["bytes"],
            "sha256": sha256_file(path),
            "idx_sha256": write_index(path, index),
        }
        write_manifest(tmp_path, schema, [entry], {}, {})
        return ShardSet.open(tmp_path, schema)

    return write


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def relist(directory, schema, number=0, **changes):
    """Write the manifest again with changes in one entry, so that a later check is reached."""
    entries = read_manifest(directory).shards
    entries[number].update(changes)
    write_manifest(directory, schema, entries, {}, {})


def test_reading_gives_back_what_was_written(shards, make_arrays):
    assert len(shards) == sum(shards.shard_sizes) == 8
    assert len(shards.shard_sizes) > 1
    for number in range(8):
        sample, expected = shards.read(number), make_arrays(number)
        assert (sample.key, sample.meta) == (f"clip{number:03d}", {"caption": f"scene {number}"})
        assert shards.name(number) == (sample.shard, sample.key)
        assert list(sample.arrays) == ["latent", "text", "depth", "scale", "frame"]
        for name in ("latent", "text", "depth", "scale"):
            np.testing.assert_array_equal(sample.arrays[name], expected[name], strict=True)
        assert np.abs(sample.arrays["frame"].astype(int) - expected["frame"]).max() <= 2


def test_a_sample_is_one_read_of_which_the_arrays_are_views(shards, monkeypatch):
    reads = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: reads.append(pread(*arguments)) or reads[-1])
    arrays = shards.read(4).arrays
    assert len(reads) == 1
    whole = np.frombuffer(reads[0], np.uint8)
    assert all(np.shares_memory(whole, arrays[name]) for name in ("latent", "text", "depth", "scale"))


def test_a_read_that_comes_in_pieces_is_put_together(shards, monkeypatch):
    expected = shards.read(1).arrays["depth"]
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: pread(handle, min(size, 700), offset))
    np.testing.assert_array_equal(shards.read(1).arrays["depth"], expected)


def test_optional_fields_may_be_missing_and_unknown_ones_are_passed_over(schema, build, make_arrays, tmp_path):
    with ShardWriter(tmp_path, schema) as writer:
        writer.add("clip0", {k: v for k, v in make_arrays(0).items() if k != "frame"})
    write_manifest(tmp_path, schema, writer.shards, {}, {})
    assert "frame" not in ShardSet.open(tmp_path, schema).read(0).arrays
    less = SampleSchema("tiny", 1, schema.fields[:2])
    assert list(ShardSet.open(tmp_path, less).read(0).arrays) == ["latent", "text"]


def test_index_out_of_range(shards):
    for index in (-1, 8):
        with pytest.raises(IndexError):
            shards.read(index)


def test_a_foreign_npy_in_column_order_reads_right(write_foreign, make_arrays):
    """Our writer stores rows; another's may not."""
    depth = np.asfortranarray(make_arrays(3)["depth"])
    shards = write_foreign((Field("depth", "f16", ("F", 4, 6)),), {"depth.npy": npy(depth)})
    np.testing.assert_array_equal(shards.read(0).arrays["depth"], depth)


# -- damage -----------------------------------------------------------------------------------------------------------


def test_tar_cut_short_is_named_at_opening(shards, schema):
    path = Path(shards.storage.url) / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DamagedError, match=r"shard-000001\.tar: 5000 bytes, expected \d+"):
        ShardSet.open(Path(shards.storage.url), schema)


def test_tar_cut_short_later_is_named_with_the_sample_when_read(shards):
    path = Path(shards.storage.url) / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DamagedError, match=r"sample 'clip000': .*shard-000000\.tar: \d+ of \d+ bytes.*cut short"):
        shards.read(0)


def test_tar_removed_later_is_named_with_the_sample_when_read(shards):
    (Path(shards.storage.url) / "shard-000000.tar").unlink()
    with pytest.raises(DamagedError, match=r"sample 'clip001': .*shard-000000\.tar: cannot be read"):
        shards.read(1)


@pytest.mark.parametrize("member", ["json", "latent.npy", "depth.npy", "frame.jpg"])
def test_flipped_byte_is_named_with_the_sample_and_member(shards, member):
    path = Path(shards.storage.url) / "shard-000000.tar"
    offset, size, _ = index_tar(path)["samples"][1]["members"][member]
    flip(path, offset + size - 1)
    with pytest.raises(DamagedError, match=rf"shard-000000\.tar: sample 'clip001': crc32 of '{member}'"):
        shards.read(1)
    assert shards.read(0).key == "clip000"


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped", "of_another_tar", "of_another_build"])
def test_damaged_index_is_named(shards, schema, damage):
    idx = index_path(Path(shards.storage.url) / "shard-000001.tar")
    if damage == "missing":
        idx.unlink()
    elif damage == "empty":
        idx.write_bytes(b"")
    elif damage == "flipped":
        flip(idx, 40)
    elif damage == "of_another_build":
        index = json.loads(idx.read_bytes())
        index["samples"].reverse()
        write_index(Path(shards.storage.url) / "shard-000001.tar", index)
    else:
        shutil.copy(index_path(Path(shards.storage.url) / "shard-000000.tar"), idx)
    with pytest.raises(DamagedError, match=r"shard-000001\.tar\.idx: "):
        ShardSet.open(Path(shards.storage.url), schema)


def test_index_of_another_tar_is_named_even_where_the_manifest_lists_its_hash(shards, schema):
    first = shards.manifest.shards[0]
    directory = Path(shards.storage.url)
    shutil.copy(index_path(directory / first["name"]), index_path(directory / "shard-000001.tar"))
    relist(Path(shards.storage.url), schema, 1, idx_sha256=first["idx_sha256"])
    with pytest.raises(DamagedError, match=r"shard-000001\.tar\.idx: .*shard-000000\.tar.*belongs to another tar"):
        ShardSet.open(Path(shards.storage.url), schema)


@pytest.mark.parametrize(
    ("extent", "said"),
    [
        ([512, 2**36, 0], "expected it within the tar's"),
        ([2**36, 1, 0], "expected it within the tar's"),
        ([-1, 1, 0], "expected it within the tar's"),
        ([2**63 - 1, 2**63 - 1, 0], "expected it within the tar's"),
        ([512, 2**64, 0], "OverflowError"),
        ([512, [[]], 0], "not an index"),
        (None, "sample 'clip0.*' has no members"),
    ],
)
def test_index_that_lies_about_extents_is_refused_before_anything_is_read(shards, schema, extent, said):
    """Also where the manifest lists the hash of the index that lies."""
    folder = Path(shards.storage.url)
    idx = index_path(folder / "shard-000001.tar")
    index = json.loads(idx.read_bytes())
    index["samples"][0]["members"] = {} if extent is None else {"json": extent}
    idx.write_text(json.dumps(index))
    relist(folder, schema, 1, idx_sha256=sha256_file(idx))
    with pytest.raises(DamagedError, match=rf"shard-000001\.tar\.idx: .*{said}"):
        ShardSet.open(folder, schema)


@pytest.mark.parametrize("name", ["../outside/o.tar", "/etc/passwd", "a/b.tar", "..", "", "a\0.tar"])
def test_manifest_that_names_files_outside_its_folder_is_refused(shards, schema, name):
    relist(Path(shards.storage.url), schema, 1, name=name)
    with pytest.raises(DamagedError, match=r"manifest\.json: no readable manifest"):
        ShardSet.open(Path(shards.storage.url), schema)


def test_manifest_that_lists_a_missing_tar_names_it(shards, schema):
    (Path(shards.storage.url) / "shard-000001.tar").unlink()
    with pytest.raises(DamagedError, match=r"shard-000001\.tar: missing"):
        ShardSet.open(Path(shards.storage.url), schema)


def test_empty_tar_is_named(shards, schema):
    (Path(shards.storage.url) / "shard-000001.tar").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"shard-000001\.tar: 0 bytes"):
        ShardSet.open(Path(shards.storage.url), schema)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b'{"version": 1, "shards": 3}', b"\xff\xfe"])
def test_unreadable_manifest_is_named(tmp_path, schema, content):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"manifest\.json: no readable manifest"):
        ShardSet.open(tmp_path, schema)


def test_edited_manifest_is_named(shards, schema):
    path = Path(shards.storage.url) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    write_json(path, {**manifest, "shards": manifest["shards"][1:]})
    with pytest.raises(DamagedError, match=r"manifest\.json: .*fingerprint"):
        ShardSet.open(Path(shards.storage.url), schema)
    write_json(path, {**manifest, "version": 2})
    with pytest.raises(DamagedError, match=r"manifest\.json: format version 2, expected 1"):
        ShardSet.open(Path(shards.storage.url), schema)


# -- schema -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "version"), [("tiny", 2), ("other", 1)])
def test_shards_of_another_schema_are_refused_at_opening(shards, schema, name, version):
    with pytest.raises(SchemaError, match=rf"manifest\.json: .*'tiny' version 1, expected '{name}' version {version}"):
        ShardSet.open(Path(shards.storage.url), dataclasses.replace(schema, name=name, version=version))


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (Field("flow", "f16", ("F",)), "'flow' was not among the built"),
        (Field("latent", "f16", (2, "f", 3)), "'latent' was built as bf16"),
        (
            Field("latent", "bf16", (4, "f", 3)),
            r"'latent' was built as bf16 \[2, 'f', 3\], expected bf16 \[4, 'f', 3\]",
        ),
    ],
)
def test_shards_built_for_another_model_are_refused_at_opening(shards, field, found):
    with pytest.raises(SchemaError, match=found):
        ShardSet.open(Path(shards.storage.url), SampleSchema("tiny", 1, (field,)))


@pytest.mark.parametrize(
    ("writes", "found"),
    [
        (SampleSchema("tiny", 3, (Field("latent", "bf16", (2, "f", 3)),)), "schema 'tiny' version 3, expected 'tiny'"),
        (SampleSchema("tiny", 1, (Field("scale", "f32", ()),)), "field 'latent' is missing"),
        (SampleSchema("tiny", 1, (Field("latent", "f16", (2, "f", 3)),)), "'latent' was written as f16, expected bf16"),
        (SampleSchema("tiny", 1, (Field("latent", "bf16", (2, "f", 4)),)), r"shape \(2, 5, 4\), expected \[2, f, 3\]"),
    ],
)
def test_a_sample_that_does_not_fit_names_tar_and_key(tmp_path, writes, found):
    """The manifest says one thing and the samples another, as after files of two builds were mixed."""
    reads = SampleSchema("tiny", 1, (Field("latent", "bf16", (2, "f", 3)),))
    spec = writes.fields[0]
    shape = tuple(5 if isinstance(dim, str) else dim for dim in spec.shape)
    with ShardWriter(tmp_path, writes) as writer:
        writer.add("clip7", {spec.name: np.zeros(shape, DTYPES[spec.dtype])})
    write_manifest(tmp_path, reads, writer.shards, {}, {})
    with pytest.raises(SchemaError, match=rf"shard-000000\.tar: sample 'clip7': .*{found}"):
        ShardSet.open(tmp_path, reads).read(0)


def test_dtype_of_the_array_is_checked_even_where_the_head_says_otherwise(tmp_path, schema):
    """float16 bits under a head that says bf16 would otherwise be read as other numbers."""
    writes = SampleSchema("tiny", 1, (Field("latent", "u8", (3,)),))
    with ShardWriter(tmp_path, writes) as writer:
        writer.add("clip7", {"latent": np.zeros(3, np.uint8)})
    path = tmp_path / writer.shards[0]["name"]
    path.write_bytes(path.read_bytes().replace(b'"latent": "u8"', b'"latent":"f16"'))
    index = index_tar(path)
    reads = SampleSchema("tiny", 1, (Field("latent", "f16", (3,)),))
    write_manifest(tmp_path, reads, [{**writer.shards[0], "idx_sha256": write_index(path, index)}], {}, {})
    with pytest.raises(SchemaError, match=r"sample 'clip7': field 'latent' holds uint8, expected float16"):
        ShardSet.open(tmp_path, reads).read(0)


@pytest.mark.parametrize(
    ("member", "content", "found"),
    [
        ("latent.npy", b"not an array", "'latent.npy' is not a readable .npy"),
        ("latent.npy", b"", "'latent.npy' is not a readable .npy"),
        ("latent.npy", npy(np.zeros(3, np.float32))[:-1], "'latent.npy' is not a readable .npy"),
        ("latent.npy", npy(np.zeros(3, np.float32)) + b"0", "'latent.npy' is not a readable .npy"),
        ("latent.npy", npy(np.array([{"a": 1}] * 3, dtype=object)), "plain numbers"),
        ("frame.jpg", b"not a picture", "'frame.jpg' is not a readable picture"),
        ("json", b"{}", "its .json is not a sample's head"),
        ("json", b"[]", "its .json is not a sample's head"),
    ],
)
def test_members_that_were_written_wrong_are_named(write_foreign, member, content, found):
    fields = Field("latent", "f32", (3,), optional=True), Field("frame", "image", (4, 6, 3), optional=True)
    with pytest.raises((DamagedError, SchemaError), match=rf"theirs\.tar: sample 'c'.*{found}"):
        write_foreign(fields, {member: content}).read(0)


# -- verify -----------------------------------------------------------------------------------------------------------


def test_verify_finds_nothing_in_a_sound_set(shards):
    assert verify_shards(shards.storage, shards.schema) == []


def test_verify_lists_every_bad_shard_and_sees_what_sizes_do_not_show(shards):
    flip(Path(shards.storage.url) / "shard-000000.tar", 100)  # in a header, where no crc32 reaches
    index_path(Path(shards.storage.url) / "shard-000001.tar").unlink()
    problems = verify_shards(shards.storage, shards.schema)
    assert len(problems) == 2
    assert "shard-000000.tar: content differs" in problems[0]
    assert "shard-000001.tar.idx: not readable" in problems[1]
    assert len(verify_shards(shards.storage, shards.schema, hashes=False)) == 1


def test_verify_speaks_of_a_set_that_cannot_be_opened(tmp_path, schema):
    (problem,) = verify_shards(tmp_path, schema)
    assert "manifest.json" in problem


def test_verify_finds_a_key_that_two_writers_used(schema, make_arrays, tmp_path):
    entries = []
    for prefix in ("a", "b"):
        with ShardWriter(tmp_path, schema, prefix=prefix) as writer:
            writer.add("clip0", make_arrays(0))
        entries += writer.shards
    write_manifest(tmp_path, schema, entries, {}, {})
    (problem,) = verify_shards(tmp_path, schema)
    assert "b-000000.tar: sample 'clip0' is also in a-000000.tar" in problem
