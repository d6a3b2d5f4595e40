"""From the raw layout to shards that the reader takes; what is bad stops the build or is listed; nothing is half."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data import examine
from data.dataset import ShardSet
from data.encoders import TextEncoder, VideoEncoder
from data.fantasy_world import build as building
from data.fantasy_world.build import assign_splits, build
from data.fantasy_world.cameras import encode_pose
from data.fantasy_world.clip import prepare_clip
from data.fantasy_world.raw import RawClip, RawError, read_metadata
from data.fantasy_world.schema import fantasy_world_schema
from data.files import TEMPORARY
from tests.data.fantasy_world.conftest import FRAMES, HEIGHT, WIDTH

SCHEMA = fantasy_world_schema(16, 64)


@pytest.fixture(scope="module")
def shards(synthetic, encoders, tmp_path_factory) -> Path:
    from data.fantasy_world.clip import ClipOptions

    output = tmp_path_factory.mktemp("built") / "shards"
    options = building.BuildOptions(ClipOptions(FRAMES, HEIGHT, WIDTH), encoders / "vae", encoders / "text_encoder",
                                    encoders / "tokenizer", encoders / "image_encoder", holdout=0.3)
    report = build(synthetic, output, options)
    assert sum(report.samples.values()) == 4
    assert report.skipped == 0
    return output


def read_all(directory: Path, schema=SCHEMA) -> dict:
    sets = [ShardSet.open(path, schema) for path in examine.splits(directory).values()]
    return {s.key: s for shards in sets for s in (shards.read(i) for i in range(len(shards)))}


def test_samples_hold_what_the_encoders_and_the_clips_give(shards, synthetic, encoders, options):
    samples = read_all(shards)
    clips = {clip.key: clip for clip in read_metadata(synthetic)[0]}
    assert set(samples) == set(clips)
    cpu = torch.device("cpu")
    video = VideoEncoder(encoders / "vae", cpu)
    text = TextEncoder(encoders / "text_encoder", encoders / "tokenizer", cpu)
    for key, sample in samples.items():
        clip = prepare_clip(clips[key], options().clip)
        encoded = {"latent": video.encode([clip.frames])[0], "text": text.encode([clips[key].prompt])[0]}
        for name, expected in encoded.items():
            stored = torch.from_numpy(sample.arrays[name].copy()).view(torch.bfloat16).float()
            torch.testing.assert_close(stored, expected, atol=1e-3, rtol=2**-7)
        for name in ("depth", "extrinsics", "intrinsics"):
            np.testing.assert_array_equal(sample.arrays[name], getattr(clip, name))
        assert np.abs(sample.arrays["frame"].astype(int) - clip.frames[0]).mean() < 8
        assert sample.meta == {"prompt": clips[key].prompt, "scale": clip.scale}


def test_image_to_video_fields_are_there_when_an_image_encoder_is(shards):
    sample = next(iter(read_all(shards, fantasy_world_schema(16, 64, image_to_video=True, clip_dim=64)).values()))
    assert sample.arrays["image_latent"].shape == (20, 2, HEIGHT // 8, WIDTH // 8)
    given = torch.from_numpy(sample.arrays["image_latent"][:4].copy()).view(torch.bfloat16)
    assert given[:, 0].eq(1).all()
    assert given[:, 1:].eq(0).all()


def test_statistics_are_sums_over_the_training_split(shards):
    train = ShardSet.open(shards / "train", SCHEMA)
    samples = [train.read(i).arrays for i in range(len(train))]
    depth = np.concatenate([s["depth"].astype(np.float64).ravel() for s in samples])
    assert train.statistics["depth_sum"] == pytest.approx(depth.sum())
    assert train.statistics["depth_count"] == np.count_nonzero(depth)
    cameras = [(torch.tensor(s["extrinsics"]), torch.tensor(s["intrinsics"])) for s in samples]
    poses = sum(encode_pose(*camera, HEIGHT, WIDTH) for camera in cameras)
    np.testing.assert_allclose(train.statistics["camera_sum"], poses.numpy(), atol=1e-5)
    assert train.statistics["camera_count"] == len(train)


def test_the_manifest_names_the_encoders(shards):
    encoders = ShardSet.open(shards / "val", SCHEMA).manifest.encoders
    assert set(encoders) == {"vae", "text_encoder", "tokenizer", "image_encoder"}
    assert encoders["vae"]["name"] == "AutoencoderKLWan"
    assert len(encoders["vae"]["sha256"]) == 64


def test_the_same_input_gives_the_same_shards(shards, synthetic, encoders, options, tmp_path):
    build(synthetic, tmp_path / "again", options(image_encoder=encoders / "image_encoder", holdout=0.3))
    for split in ("train", "val"):
        names = [ShardSet.open(base / split, SCHEMA).fingerprint for base in (shards, tmp_path / "again")]
        assert names[0] == names[1]


def test_examine_finds_them_whole_and_counts_their_bytes(shards):
    assert examine.check(shards) == []
    split = examine.inspect(shards)["train"]
    assert split["samples"] + examine.inspect(shards)["val"]["samples"] == 4
    assert set(split["field_bytes"]) == {f.name for f in fantasy_world_schema(image_to_video=True).fields} | {"json"}
    assert split["field_bytes"]["depth"] >= split["samples"] * FRAMES * HEIGHT * WIDTH * 2
    assert split["bytes"] > sum(split["field_bytes"].values())
    assert examine.contact_sheet(shards, 3).shape == (2 * HEIGHT, 2 * 4 * WIDTH, 3)


def test_examine_names_a_shard_cut_short(synthetic, options, tmp_path):
    build(synthetic, tmp_path / "shards", options())
    tar = next((tmp_path / "shards/train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-2048])
    (problem,) = examine.check(tmp_path / "shards")
    assert str(tar) in problem
    assert "expected" in problem


def test_metadata_may_assign_the_split(raw, edit_metadata, options, tmp_path):
    edit_metadata(raw, lambda entries: [e.update(split="val" if i == 2 else "train") for i, e in enumerate(entries)])
    report = build(raw, tmp_path / "shards", options())
    assert report.samples == {"train": 3, "val": 1}
    assert ShardSet.open(tmp_path / "shards/val", SCHEMA).read(0).key == "scene_00002"


def clip(key: str, split=None) -> RawClip:
    return RawClip(key, Path(), "", Path(), None, None, None, split)


def test_a_clip_stays_in_its_split_when_others_come():
    few = assign_splits([clip(f"a{i}") for i in range(200)], 0.1)
    many = assign_splits([clip(f"a{i}") for i in range(400)], 0.1)
    assert few.items() <= many.items()
    assert 20 < list(many.values()).count("val") < 65


@pytest.mark.parametrize(("count", "holdout", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (1, 0.9, None), (3, 0.0, 0)])
def test_neither_split_is_empty_unless_asked_for(count, holdout, expected):
    found = list(assign_splits([clip(f"b{i}") for i in range(count)], holdout).values())
    if expected is not None:
        assert found.count("val") == expected


def shorten(raw: Path) -> None:
    path = raw / "camera_params/scene_00001.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:3]))


def test_a_bad_clip_stops_the_build_and_leaves_nothing(raw, options, tmp_path):
    shorten(raw)
    with pytest.raises(RawError, match=r"scene_00001\.txt: 3 cameras found, expected at least 5"):
        build(raw, tmp_path / "out/shards", options())
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_bad_clips_are_skipped_counted_and_listed_on_demand(raw, edit_metadata, options, tmp_path):
    shorten(raw)
    np.save(raw / "depth/scene_00002/frame_0001.npy", np.zeros(3))
    edit_metadata(raw, lambda entries: entries[3].pop("prompt"))
    report = build(raw, tmp_path / "shards", options(skip_bad=True, holdout=0.0))
    assert (report.samples, report.skipped) == ({"train": 1}, 3)
    listed = [json.loads(line) for line in (tmp_path / "shards/skipped.jsonl").read_text().splitlines()]
    assert [entry["clip"].rpartition("/")[2] for entry in listed] == ["metadata.json: entry 3", "scene_00001",
                                                                     "scene_00002"]
    assert "3 cameras found" in listed[1]["reason"]


def test_nothing_usable_is_an_error_even_when_skipping(raw, options, tmp_path):
    for path in (raw / "camera_params").iterdir():
        path.write_text("")
    with pytest.raises(RawError, match=r"no usable clip among 4; the first one left out: .*0 cameras"):
        build(raw, tmp_path / "shards", options(skip_bad=True))
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(synthetic, options, tmp_path, monkeypatch):
    written = []

    def interrupt(self, *arguments):
        written.append(list(tmp_path.rglob("*.tar")))
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(building.Statistics, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(synthetic, tmp_path / "shards", options())
    assert written[0]
    assert list(tmp_path.iterdir()) == []
    assert build(synthetic, tmp_path / "shards", options()).samples["train"]


def test_what_a_killed_build_left_is_removed_by_the_next(synthetic, options, tmp_path):
    """Killed as the system kills: no handler runs."""
    command = ("import os, sys; from pathlib import Path; from data.files import temporary_name; "
               "temporary_name(Path(sys.argv[1])).mkdir(); os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", command, tmp_path / "shards"], cwd=Path(__file__).parents[3], check=False)
    (left,) = tmp_path.glob(f"{TEMPORARY}*")
    mine = building.temporary_name(tmp_path / "shards")
    mine.mkdir()
    build(synthetic, tmp_path / "shards", options())
    assert not left.exists()
    assert mine.exists(), "a folder of a process that lives may be in use"
    assert examine.check(tmp_path / "shards") == []


def test_finished_shards_are_replaced_only_on_demand(synthetic, options, tmp_path):
    build(synthetic, tmp_path / "shards", options())
    with pytest.raises(ValueError, match="shards: holds finished shards; give another folder, or --replace"):
        build(synthetic, tmp_path / "shards", options())
    report = build(synthetic, tmp_path / "shards", options(replace=True, holdout=0.0))
    assert list(report.samples) == ["train"]
    assert not (tmp_path / "shards/val").exists()


def test_a_folder_of_other_files_is_not_touched(synthetic, options, tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds files that are no shards"):
        build(synthetic, tmp_path, options(replace=True))
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_small_shards_are_many(synthetic, options, tmp_path):
    report = build(synthetic, tmp_path / "shards", options(max_shard_bytes=60_000, holdout=0.0))
    assert report.shards == {"train": 4}
    assert len(read_all(tmp_path / "shards")) == 4
