"""Shards are plain, reproducible tars that others can read, and nothing of an unfinished one remains."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from stagecoach.data.files import DamagedError, sha256_file, sha256_json
from stagecoach.data.format.schema import SchemaError
from stagecoach.data.format.shards import ShardWriter, index_path, read_manifest, write_index, write_manifest
from stagecoach.data.streaming.dataset import ShardSet
from tests.data.tar_index import index_tar


def tars(directory):
    return sorted(directory.glob("*.tar"))


def test_plain_webdataset_reads_our_tars(build, make_arrays, tmp_path):
    build(tmp_path, samples=4, max_bytes=10**6)
    samples = list(wds.WebDataset(str(tars(tmp_path)[0]), shardshuffle=False).decode("rgb8"))
    assert [s["__key__"] for s in samples] == ["clip000", "clip001", "clip002", "clip003"]
    for number, sample in enumerate(samples):
        arrays = make_arrays(number)
        for name in ("latent", "text", "depth", "scale"):
            np.testing.assert_array_equal(sample[f"{name}.npy"], arrays[name], strict=True)
        assert np.abs(sample["frame.jpg"].astype(int) - arrays["frame"]).max() <= 2
        assert sample["json"]["meta"] == {"caption": f"scene {number}"}
        assert sample["json"]["dtypes"]["latent"] == "bf16"
        assert (sample["json"]["schema"], sample["json"]["version"]) == ("tiny", 1)


def test_plain_tarfile_reads_our_tars_which_are_ustar_with_fixed_owner_and_time(build, tmp_path):
    build(tmp_path, samples=2, max_bytes=10**6)
    (path,) = tars(tmp_path)
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
        assert np.load(io.BytesIO(tar.extractfile("clip001.depth.npy").read()), allow_pickle=False).shape == (5, 4, 6)
        assert Image.open(tar.extractfile("clip001.frame.jpg")).size == (6, 4)
    assert [m.name for m in members[:6]] == [
        f"clip000.{name}" for name in ("json", "latent.npy", "text.npy", "depth.npy", "scale.npy", "frame.jpg")
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert all(m.offset_data - m.offset == 512 for m in members), "an extended header is not USTAR"


def test_equal_samples_make_equal_bytes(build, tmp_path):
    first, second = (build(tmp_path / name) for name in ("a", "b"))
    assert first.manifest == second.manifest
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_entries_hold_the_size_and_hashes_of_the_files(build, tmp_path):
    for entry in build(tmp_path).manifest.shards:
        path = tmp_path / entry["name"]
        assert entry["bytes"] == path.stat().st_size
        assert entry["sha256"] == sha256_file(path)
        assert entry["idx_sha256"] == sha256_file(index_path(path))


def test_tars_roll_over_before_max_bytes_and_keep_the_order(build, tmp_path):
    shards = build(tmp_path, samples=10, max_bytes=20480)
    sizes = [path.stat().st_size for path in tars(tmp_path)]
    assert len(sizes) > 2
    assert max(sizes) <= 20480
    assert [shards.read(i).key for i in range(10)] == [f"clip{i:03d}" for i in range(10)]
    assert build(tmp_path / "one", samples=3, max_bytes=10**6).shard_sizes == [3]


def test_a_sample_larger_than_max_bytes_gets_a_tar_of_its_own(build, tmp_path):
    assert build(tmp_path, samples=3, max_bytes=1).shard_sizes == [1, 1, 1]


def test_a_block_that_raises_leaves_nothing(schema, make_arrays, tmp_path):
    writer = ShardWriter(tmp_path, schema, max_bytes=20480)

    def block():
        with writer:
            for number in range(8):
                writer.add(f"clip{number}", make_arrays(number))
            assert len(list(next(tmp_path.iterdir()).glob("*.idx"))) > 1, "some tars are finished by now"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        block()
    assert list(tmp_path.iterdir()) == []
    assert writer.shards == []


def test_a_disk_that_fills_up_leaves_nothing(schema, make_arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "stagecoach.data.format.shards.os.fsync",
        lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(OSError, match="No space left"), ShardWriter(tmp_path, schema) as writer:
        writer.add("clip0", make_arrays(0))
    assert list(tmp_path.iterdir()) == []


def test_no_final_name_appears_before_the_block_ends(schema, make_arrays, tmp_path):
    with ShardWriter(tmp_path, schema, max_bytes=20480) as writer:
        for number in range(8):
            writer.add(f"clip{number}", make_arrays(number))
        assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".tmp-")] == []
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {n for entry in writer.shards for n in (entry["name"], entry["name"] + ".idx")}


def test_a_refused_sample_leaves_no_trace_in_the_tar(schema, make_arrays, tmp_path):
    with ShardWriter(tmp_path, schema) as writer:
        writer.add("good", make_arrays(0))
        with pytest.raises(SchemaError, match=r"'bad'.*'depth'"):
            writer.add("bad", {**make_arrays(1), "depth": np.zeros((5, 4, 6), np.float32)})
        writer.add("bad", make_arrays(1))
    assert [s["key"] for s in index_tar(tars(tmp_path)[0])["samples"]] == ["good", "bad"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"latent": None}, "'latent' is missing"),
        ({"latent": np.zeros((2, 2, 3), np.float32)}, "float32, expected uint16"),
        ({"latent": np.zeros((3, 2, 3), np.uint16)}, r"shape \(3, 2, 3\)"),
        ({"text": np.zeros(4, np.uint16)}, r"shape \(4,\)"),
        ({"depht": np.zeros(1)}, "'depht'.*not in schema 'tiny'"),
    ],
)
def test_samples_that_do_not_fit_the_schema_are_refused(schema, make_arrays, tmp_path, change, found):
    with ShardWriter(tmp_path, schema) as writer, pytest.raises(SchemaError, match=f"clip0.*{found}"):
        writer.add("clip0", {**make_arrays(0), **change})


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "x" * 95])
def test_keys_that_others_would_split_are_refused(schema, make_arrays, tmp_path, key):
    with ShardWriter(tmp_path, schema) as writer, pytest.raises(ValueError, match="key"):
        writer.add(key, make_arrays(0))


def test_a_key_is_taken_once(schema, make_arrays, tmp_path):
    with ShardWriter(tmp_path, schema) as writer:
        writer.add("clip0", make_arrays(0))
        with pytest.raises(ValueError, match="'clip0' was added"):
            writer.add("clip0", make_arrays(1))


def test_a_finished_set_is_not_written_over(build, schema, tmp_path):
    build(tmp_path)
    with pytest.raises(ValueError, match=r"manifest\.json: a finished set"), ShardWriter(tmp_path, schema):
        pass
    assert build(tmp_path / "other").fingerprint == ShardSet.open(tmp_path, schema).fingerprint


def test_index_tar_finds_what_the_writer_wrote(build, schema, tmp_path):
    shards = build(tmp_path)
    for entry in shards.manifest.shards:
        path = tmp_path / entry["name"]
        index = index_tar(path, schema)
        assert index == json.loads(index_path(path).read_bytes())
        assert write_index(path, index) == entry["idx_sha256"]


def test_index_tar_reads_tars_of_webdataset_itself(tmp_path):
    path = tmp_path / "theirs.tar"
    with wds.TarWriter(str(path)) as writer:
        for number in range(3):
            writer.write({"__key__": f"dir/s{number}", "a.npy": np.arange(number + 1), "txt": "word"})
    index = index_tar(path)
    assert [s["key"] for s in index["samples"]] == ["dir/s0", "dir/s1", "dir/s2"]
    data = path.read_bytes()
    offset, size, _ = index["samples"][2]["members"]["a.npy"]
    assert np.load(io.BytesIO(data[offset : offset + size])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["empty", "in_data", "in_header", "at_a_member", "no_tar", "header_byte"])
def test_index_tar_names_a_tar_that_does_not_read_to_its_end(build, tmp_path, damage):
    build(tmp_path, samples=3, max_bytes=10**6)
    (path,) = tars(tmp_path)
    data = path.read_bytes()
    offset, size, _ = index_tar(path)["samples"][1]["members"]["latent.npy"]
    path.write_bytes(
        {
            "empty": b"",
            "in_data": data[: offset + size // 2],
            "in_header": data[: offset - 100],
            "at_a_member": data[: offset - 512],
            "no_tar": bytes(range(256)) * 8,
            "header_byte": data[: offset - 400] + b"\xff" + data[offset - 399 :],
        }[damage]
    )
    with pytest.raises(DamagedError, match=path.name):
        index_tar(path)


def test_index_tar_refuses_samples_that_are_torn_apart(tmp_path):
    path = tmp_path / "torn.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("a.txt", "b.txt", "a.npy"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DamagedError, match=r"torn\.tar: the members of sample 'a' are not side by side"):
        index_tar(path)


def test_manifest_lists_shards_by_name_whatever_order_they_came_in(build, schema, tmp_path):
    shards = build(tmp_path).manifest.shards
    manifest = write_manifest(tmp_path, schema, shards[::-1], {}, {})
    assert manifest.shards == shards
    assert manifest.fingerprint == sha256_json(shards)
    assert read_manifest(tmp_path) == manifest


def test_manifest_of_nothing_or_of_doubles_is_refused(build, schema, tmp_path):
    shards = build(tmp_path).manifest.shards
    with pytest.raises(ValueError, match="no shard"):
        write_manifest(tmp_path, schema, [], {}, {})
    with pytest.raises(ValueError, match="listed twice"):
        write_manifest(tmp_path, schema, [*shards, shards[0]], {}, {})


def test_hash_in_the_entry_is_taken_while_writing(build, tmp_path):
    entry = build(tmp_path, samples=1).manifest.shards[0]
    assert entry["sha256"] == hashlib.sha256((tmp_path / entry["name"]).read_bytes()).hexdigest()
