"""Tars of ``webdataset.ShardWriter`` become a set that trains, and ours are read by webdataset and by tar."""

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from stagecoach.data.files import DamagedError
from stagecoach.data.format.schema import Field, SampleSchema, SchemaError
from stagecoach.data.format.shards import index_path, read_manifest
from stagecoach.data.maintenance.check import check
from stagecoach.data.maintenance.indexing import family_schema, index_folder, schema_of
from stagecoach.data.maintenance.repair import repair
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.mixture import DatasetMixture, Source

SCHEMA = SampleSchema(
    "tiny",
    1,
    (
        Field("latent", "bf16", (2, "f")),
        Field("depth", "f16", ("F", 3)),
        Field("frame", "image", (4, 6, 3), optional=True),
    ),
)


def sample(number: int, key: str | None = None, **changes) -> dict:
    """A sample as somebody else would write it, a pure function of its number."""
    rng = np.random.default_rng(number)
    picture = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 8 * number, np.uint8)).save(picture, "PNG")
    made = {
        "__key__": key or f"s{number:03d}",
        "latent.npy": rng.integers(0, 0x7F80, (2, number % 3 + 1), np.uint16),
        "depth.npy": rng.random((4, 3)).astype(np.float16),
        "frame.png": picture.getvalue(),
        "json": {"caption": f"scene {number}"},
        "txt": "a word of theirs",
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


@pytest.fixture
def theirs(tmp_path):
    """Samples written by ``webdataset.ShardWriter``, three to a tar."""

    def write(samples, folder="theirs") -> Path:
        (tmp_path / folder).mkdir(parents=True)
        with wds.ShardWriter(str(tmp_path / folder / "t-%03d.tar"), maxcount=3, verbose=0) as writer:
            for each in samples:
                writer.write(each)
        return tmp_path / folder

    return write


def test_a_set_of_webdatasets_writer_is_read_as_it_was_written(theirs):
    folder = theirs(sample(number) for number in range(8))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = index_folder(folder, SCHEMA)["theirs"]
    assert (result["samples"], result["shards"], result["heads"], result["skipped"]) == (8, 3, False, 0)
    assert {name: (folder / name).read_bytes() for name in before} == before, "their tars are not touched"
    shards = ShardSet.open(folder, SCHEMA)
    plain = wds.WebDataset([str(folder / name) for name in sorted(before)], shardshuffle=False).decode("rgb8")
    for number, other in enumerate(plain):
        ours, wrote = shards.read(number), sample(number)
        assert (ours.key, ours.meta) == (other["__key__"], {"caption": f"scene {number}"})
        assert list(ours.arrays) == ["latent", "depth", "frame"]
        for name in ("latent", "depth"):
            np.testing.assert_array_equal(ours.arrays[name], wrote[f"{name}.npy"], strict=True)
            np.testing.assert_array_equal(ours.arrays[name], other[f"{name}.npy"], strict=True)
        np.testing.assert_array_equal(ours.arrays["frame"], other["frame.png"], strict=True)
    assert shards.sizes.tolist() == [[number % 3 + 1, 4] for number in range(8)], "f, F"
    assert check(folder) == []


def test_our_shards_give_webdataset_and_tar_the_same_arrays(build, make_arrays, tmp_path):
    shards = build(tmp_path / "ours", samples=6)
    tars = sorted((tmp_path / "ours").glob("*.tar"))
    plain = list(wds.WebDataset([str(tar) for tar in tars], shardshuffle=False).decode("rgb8"))
    assert [each["__key__"] for each in plain] == [shards.read(number).key for number in range(6)]
    for tar in tars:
        subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True)
    for number, other in enumerate(plain):
        ours = shards.read(number)
        for name in ("latent", "text", "depth", "scale"):
            np.testing.assert_array_equal(ours.arrays[name], make_arrays(number)[name], strict=True)
            np.testing.assert_array_equal(ours.arrays[name], other[f"{name}.npy"], strict=True)
            np.testing.assert_array_equal(ours.arrays[name], np.load(tmp_path / f"{ours.key}.{name}.npy"), strict=True)
        np.testing.assert_array_equal(ours.arrays["frame"], other["frame.jpg"])
        np.testing.assert_array_equal(ours.arrays["frame"], np.asarray(Image.open(tmp_path / f"{ours.key}.frame.jpg")))


def test_our_tars_without_index_and_manifest_are_indexed_with_their_heads(build, schema, tmp_path):
    first = build(tmp_path, samples=5).manifest
    for path in (*tmp_path.glob("*.idx"), tmp_path / "manifest.json"):
        path.unlink()
    assert index_folder(tmp_path, schema)[tmp_path.name]["heads"] is True
    assert read_manifest(tmp_path).shards == first.shards, "the very indices that the writer made"


def test_keys_may_hold_folders_and_long_names(theirs):
    keys = [f"{'part-' * 30}{number}/clip" for number in range(4)] + ["./a/b", "c d/é"]
    folder = theirs(sample(number, key) for number, key in enumerate(keys))
    index_folder(folder, SCHEMA)
    shards = ShardSet.open(folder, SCHEMA)
    assert [shards.read(number).key for number in range(6)] == keys
    assert check(folder) == []
    # A repair keeps such names, too.
    tar = folder / "t-000.tar"
    row = json.loads(index_path(tar).read_bytes())["samples"][1]
    data = bytearray(tar.read_bytes())
    data[row["members"]["latent.npy"][0] + 128] ^= 1
    tar.write_bytes(data)
    assert repair(folder)["theirs"]["dropped"] == 1
    assert check(folder) == []
    shards = ShardSet.open(folder, SCHEMA)
    assert [shards.read(number).key for number in range(5)] == [keys[0], *keys[2:]]


@pytest.mark.parametrize(("json_member", "meta"), [(None, {}), ({"a": 1}, {"a": 1}), ([1, 2], {"json": [1, 2]})])
def test_json_of_others_is_meta(theirs, json_member, meta):
    folder = theirs([sample(0, json=json_member)])
    index_folder(folder, SCHEMA)
    assert ShardSet.open(folder, SCHEMA).read(0).meta == meta


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"latent.npy": np.zeros((2, 3), np.float16)}, r"'latent' holds float16, expected uint16 \(bf16\)"),
        ({"latent.npy": np.zeros((2, 3), np.float32)}, r"'latent' holds float32, expected uint16 \(bf16\)"),
        ({"depth.npy": np.zeros((2, 3), np.float32)}, r"'depth' holds float32, expected float16 \(f16\)"),
        ({"depth.npy": None}, "'depth' is missing"),
        ({"latent.npy": np.zeros((3, 3), np.uint16)}, r"shape \(3, 3\), expected \[2, f\]"),
    ],
)
def test_samples_that_do_not_fit_are_refused_or_left_out_and_listed(theirs, changes, found):
    folder = theirs([sample(0), sample(1, **changes), sample(2), sample(3)])
    with pytest.raises(DamagedError, match=rf"t-000\.tar: sample 's001': .*{found}.*--skip-bad"):
        index_folder(folder, SCHEMA)
    assert not (folder / "manifest.json").exists()
    assert index_folder(folder, SCHEMA, skip_bad=True)["theirs"]["skipped"] == 1
    (line,) = map(json.loads, (folder / "skipped.jsonl").read_text().splitlines())
    assert (line["shard"], line["key"]) == ("t-000.tar", "s001")
    shards = ShardSet.open(folder, SCHEMA)
    assert [shards.read(number).key for number in range(len(shards))] == ["s000", "s002", "s003"]
    assert check(folder) == []
    assert repair(folder)["theirs"]["action"] == "nothing to do"


def test_what_is_left_out_stays_so_when_an_index_is_made_again(theirs):
    folder = theirs([sample(0), sample(1, **{"depth.npy": None}), sample(2)])
    index_folder(folder, SCHEMA, skip_bad=True)
    tar = (folder / "t-000.tar").read_bytes()
    index_path(folder / "t-000.tar").unlink()
    repair(folder)
    assert check(folder) == []
    assert (folder / "t-000.tar").read_bytes() == tar, "a tar of others that is whole is not written again"
    assert len(ShardSet.open(folder, SCHEMA)) == 2


def test_a_key_of_two_tars_is_refused_or_left_out(theirs):
    folder = theirs([sample(0), sample(1), sample(2), sample(3, key="s001"), sample(4)])
    with pytest.raises(DamagedError, match=r"t-001\.tar: sample 's001' is also in t-000\.tar"):
        index_folder(folder, SCHEMA)
    index_folder(folder, SCHEMA, skip_bad=True)
    assert len(ShardSet.open(folder, SCHEMA)) == 4
    assert check(folder) == []


def test_splits_below_the_folder_are_indexed_each(theirs):
    theirs([sample(0)], "both/train")
    folder = theirs([sample(1)], "both/val").parent
    assert {name: split["samples"] for name, split in index_folder(folder, SCHEMA).items()} == {"train": 1, "val": 1}


def test_indexing_again_changes_nothing_and_replace_makes_it_anew(theirs):
    folder = theirs(sample(number) for number in range(4))
    index_folder(folder, SCHEMA)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert index_folder(folder, SCHEMA)["theirs"]["action"] == "indexed before"
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    (folder / "t-001.tar").unlink()
    with pytest.raises(DamagedError, match=r"t-001\.tar.*--replace"):
        index_folder(folder, SCHEMA)
    index_path(folder / "t-001.tar").unlink()
    assert index_folder(folder, SCHEMA, replace=True)["theirs"]["samples"] == 3


def test_tars_added_to_an_indexed_folder_are_named(theirs):
    folder = theirs(sample(number) for number in range(3))
    index_folder(folder, SCHEMA)
    shutil.copy(folder / "t-000.tar", folder / "u-000.tar")
    with pytest.raises(DamagedError, match=r"u-000\.tar differ.*--replace"):
        index_folder(folder, SCHEMA)


def test_a_built_set_is_not_indexed_over(build, schema, tmp_path):
    build(tmp_path, samples=2)
    with pytest.raises(DamagedError, match=r"manifest\.json: was written by a build.*repair"):
        index_folder(tmp_path, schema, replace=True)
    assert read_manifest(tmp_path).statistics


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + data, lambda data: data[:-1] + b"x"],
)
def test_a_tar_that_does_not_read_to_its_end_is_named(theirs, damage):
    folder = theirs(sample(number) for number in range(3))
    tar = folder / "t-000.tar"
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(DamagedError, match=r"t-000\.tar"):
        index_folder(folder, SCHEMA)
    if not tar.stat().st_size:
        with pytest.raises(DamagedError, match=r"t-000\.tar"):
            index_folder(folder, SCHEMA, skip_bad=True)
        return
    [split] = index_folder(folder, SCHEMA, skip_bad=True).values()
    assert split["skipped"] == 1
    assert "t-000.tar" in json.loads((folder / "skipped.jsonl").read_text())["reason"]


def test_a_folder_without_tars_is_named(tmp_path):
    with pytest.raises(DamagedError, match=f"{tmp_path}: no shards found"):
        index_folder(tmp_path, SCHEMA)


def test_a_compressed_tar_is_no_tar_of_ours(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(DamagedError, match=r"a\.tar: compressed by gzip, expected a plain tar"):
        index_folder(tmp_path, SCHEMA)


def test_the_schema_of_another_set_is_taken_from_its_manifest(build, schema, tmp_path):
    build(tmp_path / "train", samples=1)
    assert schema_of(tmp_path) == schema


def test_a_set_of_another_schema_is_refused_as_indexed_before(theirs):
    folder = theirs([sample(0)])
    index_folder(folder, SCHEMA)
    with pytest.raises((DamagedError, SchemaError), match=r"schema 'tiny' version 1.*--replace"):
        index_folder(folder, SampleSchema("tiny", 2, SCHEMA.fields))


def _fantasy_world(number: int, frames: int) -> dict:
    """A clip of zeros but for its depth and for latents of 1 and -1, as another's tool would write it."""
    shapes = {
        "latent": ((16, 2, 2, 3), np.uint16),
        "text": ((2, 8), np.uint16),
        "depth": ((frames, 16, 24), np.float16),
        "extrinsics": ((frames, 3, 4), np.float32),
        "intrinsics": ((frames, 4), np.float32),
    }
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    arrays["latent"][:, 0], arrays["latent"][:, 1] = 0x3F80, 0xBF80
    arrays["extrinsics"][:] = np.eye(3, 4)
    arrays["intrinsics"][:] = 20, 20, 12, 8
    arrays["depth"][0] = number + 1
    return {"__key__": f"clip{number}", **{f"{name}.npy": array for name, array in arrays.items()}}


def test_what_a_family_counts_is_counted_of_samples_that_fit(theirs):
    folder = theirs([*(_fantasy_world(number, 5) for number in range(4)), {"__key__": "bad", "txt": "word"}])
    schema = family_schema("fantasy_world", ["text_dim=8"])
    result = index_folder(folder, schema, skip_bad=True)["theirs"]
    assert (result["samples"], result["skipped"], result["statistics"]) == (4, 1, "")
    found = read_manifest(folder).statistics
    assert (found["depth_sum"], found["depth_count"]) == (16 * 24 * 10, 4 * 16 * 24)
    assert found["camera_count"] == 4
    assert np.array(found["camera_sum"]).shape == (5, 9)
    assert index_folder(folder, schema, skip_bad=True, replace=True)["theirs"]["samples"] == 4


def test_clips_of_unequal_lengths_have_no_statistics_which_is_said(theirs):
    folder = theirs([_fantasy_world(0, 5), _fantasy_world(1, 9)])
    result = index_folder(folder, family_schema("fantasy_world", ["text_dim=8"]))["theirs"]
    assert result["statistics"].startswith("none: sample 'clip1': ")
    assert read_manifest(folder).statistics == {}


def test_what_is_passed_over_is_counted_and_named(tmp_path, caplog):
    """Samples that are links, as GNU tar writes second names, are refused; endings in capitals, names without an
    ending, other tars; a member that leads out of the folder is a name like any other, since nothing is unpacked."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    with wds.TarWriter(str(folder / "t.tar")) as writer:
        for number in range(3):
            writer.write({name: value for name, value in sample(number).items() if name != "txt"})
    with tarfile.open(folder / "t.tar", "a") as tar:
        for name, kind, target in [
            ("zz1.latent.npy", tarfile.LNKTYPE, "s000.latent.npy"),
            ("zz1.depth.npy", tarfile.LNKTYPE, "s000.depth.npy"),
            ("../../etc/cron.d/x.npy", tarfile.SYMTYPE, "/etc/passwd"),
            ("pipe.npy", tarfile.FIFOTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name in ("README", "s003.latent.npy", "s003.depth.npy", "s003.FRAME.PNG", "__info__/a.json"):
            content = b""
            if name.endswith(".npy"):
                stream = io.BytesIO()
                np.save(stream, sample(3)[name.partition(".")[2]])
                content = stream.getvalue()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shutil.copy(folder / "t.tar", folder / "u.tar.gz")
    shutil.copy(folder / "t.tar", folder / "v.TAR")
    with pytest.raises(DamagedError, match=r"sample 'zz1': 'latent.npy' is stored as a link to 's000.latent.*deref"):
        index_folder(folder, SCHEMA)
    with caplog.at_level("WARNING"):
        [split] = index_folder(folder, SCHEMA, skip_bad=True).values()
    assert (split["samples"], split["skipped"]) == (4, 2)
    assert "zz1" in (folder / "skipped.jsonl").read_text()
    assert check(folder) == []
    for part in (
        "1 devices (first t.tar: pipe.npy)",
        "1 names without key and extension (first t.tar: README)",
        "1 __meta__ files (first t.tar: __info__/a.json)",
        "1 members 'FRAME.PNG' that no field takes (first t.tar: s003.FRAME.PNG)",
        "2 files that are no uncompressed .tar (first u.tar.gz)",
    ):
        assert part in split["passed_over"]
        assert part in caplog.text
    assert not (tmp_path / "etc").exists()


def test_a_cut_tar_is_indexed_up_to_the_cut_where_bad_samples_may_be_left_out(theirs):
    folder = theirs(sample(number) for number in range(6))
    path = folder / "t-001.tar"
    path.write_bytes(path.read_bytes()[:-12000])
    with pytest.raises(DamagedError, match=r"t-001\.tar: .*; --skip-bad takes the samples before that"):
        index_folder(folder, SCHEMA)
    [split] = index_folder(folder, SCHEMA, skip_bad=True).values()
    assert (split["samples"], split["skipped"]) == (5, 1)
    [line] = map(json.loads, (folder / "skipped.jsonl").read_text().splitlines())
    assert (line["shard"], line["key"]) == ("t-001.tar", "...")
    assert check(folder) == []
    shards = ShardSet.open(folder, SCHEMA)
    assert [shards.read(number).key for number in range(5)] == [f"s{number:03d}" for number in range(5)]
    assert index_folder(folder, SCHEMA)["theirs"]["action"] == "indexed before"


def test_tars_that_cannot_be_indexed_say_what_they_are(theirs, tmp_path):
    folder = theirs(sample(number) for number in range(2))
    plain = (folder / "t-000.tar").read_bytes()
    (folder / "t-000.tar").write_bytes(gzip.compress(plain))
    with pytest.raises(DamagedError, match=r"t-000\.tar: compressed by gzip, expected a plain tar.*gzip -d"):
        index_folder(folder, SCHEMA)
    (folder / "t-000.tar").rename(folder / "t-000.tar.gz")
    with pytest.raises(DamagedError, match=r"1 compressed tars found \(first t-000\.tar\.gz\)"):
        index_folder(folder, SCHEMA)
    deep = tmp_path / "deep/set/train"
    deep.mkdir(parents=True)
    (deep / "t.tar").write_bytes(plain)
    with pytest.raises(DamagedError, match=r"deep: tars found two folders below.*; give .*deep/set$"):
        index_folder(tmp_path / "deep", SCHEMA)
    assert index_folder(tmp_path / "deep/set", SCHEMA)["train"]["samples"] == 2
    (tmp_path / "sparse").mkdir()
    with open(tmp_path / "s000.latent.npy", "wb") as file:
        file.truncate(1 << 20)
    done = subprocess.run(["tar", "--sparse", "-cf", tmp_path / "sparse/a.tar", "-C", tmp_path, "s000.latent.npy"])
    assert done.returncode == 0
    with pytest.raises(DamagedError, match=r"'s000\.latent\.npy' is stored as a sparse file.*without --sparse"):
        index_folder(tmp_path / "sparse", SCHEMA)
    dotted = theirs([sample(0, "clip.v1")], "dotted")
    with pytest.raises(DamagedError, match=r"sample 'clip': its members are called 'v1\.\S+', as of a key with a dot"):
        index_folder(dotted, SCHEMA)


def test_an_optional_field_of_some_samples_is_found_when_the_set_is_opened(theirs, tmp_path):
    folder = theirs(
        (sample(number, **({"frame.png": None} if number == 2 else {})) for number in range(4)), "set/train"
    )
    index_folder(folder, SCHEMA)
    named = r"sample 's002' has no field 'frame', which .*sample 's000' has, as 3 of 4 samples"
    with pytest.raises(SchemaError, match=named):
        DatasetMixture.open([Source(str(tmp_path / "set"))], "train", SCHEMA)
