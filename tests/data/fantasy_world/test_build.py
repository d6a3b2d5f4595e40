"""From the raw layout to shards that the reader takes; what is bad stops the build or is listed; nothing is half."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stagecoach.data.building.build import build
from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.encoding.latent_encoders import VideoEncoder
from stagecoach.data.encoding.text_encoders import TextEncoder
from stagecoach.data.fantasy_world.cameras import encode_pose
from stagecoach.data.fantasy_world.clip import ClipOptions, prepare_clip
from stagecoach.data.fantasy_world.job import FantasyWorldJob, _Sizes
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.fantasy_world.schema import fantasy_world_schema
from stagecoach.data.fantasy_world.statistics import WARP_EDGES, ClipStatistics, describe
from stagecoach.data.files import TEMPORARY
from stagecoach.data.format.schema import SchemaError
from stagecoach.data.format.shards import read_manifest, write_manifest
from stagecoach.data.maintenance.check import check, find_sets
from stagecoach.data.maintenance.inspect import contact_sheet, inspect
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.mixture import DatasetMixture, Source
from tests.data.building.raw_files import files_of_no_item
from tests.data.fantasy_world.conftest import CLIP, FRAMES, HEIGHT, WIDTH

SCHEMA = fantasy_world_schema(16, 64)


@pytest.fixture(scope="module")
def shards(synthetic, make_job, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("built") / "shards"
    report = build(make_job(synthetic, image=True), output, BuildOptions(holdout=0.3))
    assert sum(report.samples.values()) == 4
    assert report.skipped == 0
    assert report.more["distorted"] == 0
    assert sum(report.more["warp error"].values()) == 4
    return output


def read_all(directory: Path, schema=SCHEMA) -> dict:
    sets = [ShardSet.open(path, schema) for path in find_sets(directory).values()]
    return {s.key: s for shards in sets for s in (shards.read(i) for i in range(len(shards)))}


def test_samples_hold_what_the_encoders_and_the_clips_give(shards, synthetic, encoders):
    samples = read_all(shards)
    clips = {clip.key: clip for clip in read_metadata(synthetic)[0]}
    assert set(samples) == set(clips)
    cpu = torch.device("cpu")
    video = VideoEncoder(encoders / "vae", cpu)
    text = TextEncoder(encoders / "text_encoder", encoders / "tokenizer", cpu)
    for key, sample in samples.items():
        clip = prepare_clip(clips[key], CLIP)
        encoded = {"latent": video.encode([clip.frames])[0], "text": text.encode([clips[key].prompt])[0]}
        for name, expected in encoded.items():
            stored = torch.from_numpy(sample.arrays[name].copy()).view(torch.bfloat16).float()
            torch.testing.assert_close(stored, expected, atol=1e-3, rtol=2**-7)
        for name in ("depth", "extrinsics", "intrinsics"):
            np.testing.assert_array_equal(sample.arrays[name], getattr(clip, name))
        assert np.abs(sample.arrays["frame"].astype(int) - clip.frames[0]).mean() < 8
        assert sample.meta["prompt"] == clips[key].prompt
        assert sample.meta["scale"] == clip.scale
        assert sample.meta["valid"] == pytest.approx((clip.depth > 0).mean(), abs=1e-6)
        assert sample.meta["warp"] == clip.warp.as_dict()


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


def test_what_depth_is_like_is_counted_and_told(shards):
    train = ShardSet.open(shards / "train", SCHEMA)
    samples = [train.read(i) for i in range(len(train))]
    errors = [sample.meta["warp"]["error"] for sample in samples]
    assert train.statistics["warp_counts"][-1] == errors.count(None)
    assert sum(train.statistics["warp_counts"][: WARP_EDGES.index(0.02) + 1]) == len(train) - errors.count(None)
    valid = np.mean([sample.meta["valid"] for sample in samples])
    told = describe(train.statistics)
    assert told["valid depth"] == f"{100 * valid:.1f} %"
    assert told["scene scale"].startswith(f"{np.exp(np.mean([np.log(s.meta['scale']) for s in samples])):.3g}, times")
    assert inspect(shards)["train"]["described"] == told
    assert describe({"depth_sum": 1.0}) == {}


def test_a_set_of_wrong_units_is_refused_with_the_cause(raw, make_job, edit_metadata, tmp_path):
    def change(entries):
        for entry in entries:
            for file in (raw / entry["depth"]).iterdir():
                np.save(file, 1000 * np.load(file))

    edit_metadata(raw, change)
    with pytest.raises(RawError, match=r"depth/scene_0000\d: depth and cameras do not agree.* 0\.001 times as large"):
        build(make_job(raw), tmp_path / "shards", BuildOptions())


def test_the_manifest_names_the_encoders(shards):
    encoders = ShardSet.open(shards / "val", SCHEMA).manifest.encoders
    assert set(encoders) == {"vae", "text_encoder", "tokenizer", "image_encoder"}
    assert encoders["vae"]["name"] == "AutoencoderKLWan"
    assert len(encoders["vae"]["sha256"]) == 64


def test_parts_make_the_same_samples_and_statistics(shards, synthetic, make_job, tmp_path):
    build(make_job(synthetic, image=True), tmp_path / "again", BuildOptions(holdout=0.3, part_items=1))
    for split in ("train", "val"):
        whole, parts = (ShardSet.open(base / split, SCHEMA) for base in (shards, tmp_path / "again"))
        assert len(parts.manifest.shards) == len(whole) == len(parts)
        for index in range(len(whole)):
            one, other = whole.read(index), parts.read(index)
            assert one.key == other.key
            for name in ("depth", "extrinsics", "intrinsics"):
                np.testing.assert_array_equal(one.arrays[name], other.arrays[name])
        np.testing.assert_allclose(parts.statistics["camera_sum"], whole.statistics["camera_sum"], rtol=1e-12)


@pytest.mark.slow
def test_two_processes_make_the_same_shards(shards, synthetic, make_job, tmp_path):
    """Also that a job can be pickled before its encoders are loaded."""
    build(make_job(synthetic, image=True), tmp_path / "again", BuildOptions(holdout=0.3, workers=2))
    for split in ("train", "val"):
        names = [ShardSet.open(base / split, SCHEMA).fingerprint for base in (shards, tmp_path / "again")]
        assert names[0] == names[1]


def test_other_encoders_or_clips_are_not_mixed(raw, make_job, tmp_path):
    build(make_job(raw), tmp_path / "shards", BuildOptions(part_items=1), worker_rank=WorkerRank(0, 2))
    with pytest.raises(
        ValueError,
        match=r"a build with other settings .*encoders.image_encoder None \(now {'name': "
        r"'CLIPVisionModel'",
    ):
        build(make_job(raw, image=True), tmp_path / "shards", BuildOptions(part_items=1))
    entries = json.loads((raw / "metadata.json").read_text())
    (raw / "metadata.json").write_text(json.dumps(entries, indent=3))
    with pytest.raises(ValueError, match="begun here: metadata_sha256"):
        build(make_job(raw), tmp_path / "shards", BuildOptions(part_items=1))


def test_shards_whose_clip_saw_the_middle_of_the_picture_are_neither_continued_nor_mixed(
    shards, raw, make_job, tmp_path, monkeypatch
):
    """As builds were before they told what CLIP was given."""
    job = make_job(raw, image=True)
    older = {role: {k: v for k, v in entry.items() if k != "input"} for role, entry in job.entries.items()}
    assert job.entries["image_encoder"]["input"] == "the whole picture, squashed"
    assert job.entries["vae"] == older["vae"]
    with monkeypatch.context() as patch:
        patch.setattr(FantasyWorldJob, "entries", older)
        build(make_job(raw, image=True), tmp_path / "begun", BuildOptions(part_items=1), worker_rank=WorkerRank(0, 2))
    with pytest.raises(ValueError, match=r"begun here: encoders.image_encoder.input None \(now 'the whole picture, "):
        build(job, tmp_path / "begun", BuildOptions(part_items=1))
    folder = tmp_path / "older" / "train"
    shutil.copytree(shards / "val", folder)
    manifest = read_manifest(folder)
    schema = fantasy_world_schema(16, 64, image_to_video=True, clip_dim=job._sizes.image)
    write_manifest(folder, schema, manifest.shards, older, manifest.statistics)
    sets = [Source(str(path)) for path in (shards, tmp_path / "older")]
    mixture = DatasetMixture.open(sets, "train", schema)
    with pytest.raises(SchemaError, match=r"older/train: its image_encoder was given nothing.*build again what is old"):
        mixture.check_encoders({})


def test_a_part_of_full_size_clips_makes_about_one_shard(make_job, synthetic, monkeypatch):
    job = FantasyWorldJob(synthetic, ClipOptions(81, 336, 592), make_job(synthetic)._paths)
    monkeypatch.setattr(FantasyWorldJob, "_sizes", _Sizes(16, 4096, None))
    depth, latent, text = 81 * 336 * 592 * 2, 16 * 21 * 42 * 74 * 2, 512 * 4096 * 2
    assert 0.85e9 < job.part_items * (depth + latent + text) < 1e9


def test_examine_finds_them_whole_and_counts_their_bytes(shards):
    assert check(shards) == []
    split = inspect(shards)["train"]
    assert split["samples"] + inspect(shards)["val"]["samples"] == 4
    assert set(split["field_bytes"]) == {f.name for f in fantasy_world_schema(image_to_video=True).fields} | {"json"}
    assert split["field_bytes"]["depth"] >= split["samples"] * FRAMES * HEIGHT * WIDTH * 2
    assert split["bytes"] > sum(split["field_bytes"].values())
    assert contact_sheet(shards, 3).shape == (2 * HEIGHT, 2 * 4 * WIDTH, 3)


def test_examine_names_a_shard_cut_short(synthetic, make_job, tmp_path):
    build(make_job(synthetic), tmp_path / "shards", BuildOptions())
    tar = next((tmp_path / "shards/train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-2048])
    (problem,) = check(tmp_path / "shards")
    assert str(tar) in problem
    assert "expected" in problem


def test_metadata_may_assign_the_split(raw, edit_metadata, make_job, tmp_path):
    edit_metadata(raw, lambda entries: [e.update(split="val" if i == 2 else "train") for i, e in enumerate(entries)])
    report = build(make_job(raw), tmp_path / "shards", BuildOptions())
    assert report.samples == {"train": 3, "val": 1}
    assert ShardSet.open(tmp_path / "shards/val", SCHEMA).read(0).key == "scene_00002"


def shorten(raw: Path) -> None:
    path = raw / "camera_params/scene_00001.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:3]))


def test_a_bad_clip_stops_the_build_and_leaves_nothing(raw, make_job, tmp_path):
    shorten(raw)
    with pytest.raises(RawError, match=r"scene_00001\.txt: 3 cameras found, expected at least 5"):
        build(make_job(raw), tmp_path / "out/shards", BuildOptions())
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_bad_clips_are_skipped_counted_and_listed_on_demand(raw, edit_metadata, make_job, tmp_path):
    shorten(raw)
    np.save(raw / "depth/scene_00002/frame_0001.npy", np.zeros(3))
    edit_metadata(raw, lambda entries: entries[3].pop("prompt"))
    report = build(make_job(raw), tmp_path / "shards", BuildOptions(skip_bad=True, holdout=0.0))
    assert (report.samples, report.skipped) == ({"train": 1}, 3)
    listed = [json.loads(line) for line in (tmp_path / "shards/skipped.jsonl").read_text().splitlines()]
    assert [entry["key"].rpartition("/")[2] for entry in listed] == [
        "metadata.json: entry 3",
        "scene_00001",
        "scene_00002",
    ]
    assert "3 cameras found" in listed[1]["reason"]


def test_nothing_usable_is_an_error_even_when_skipping(raw, make_job, tmp_path):
    for path in (raw / "camera_params").iterdir():
        path.write_text("")
    with pytest.raises(RawError, match=r"no usable item for training among 4; the first one left out: .*0 cameras"):
        build(make_job(raw), tmp_path / "shards", BuildOptions(skip_bad=True))
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(synthetic, make_job, tmp_path, monkeypatch):
    written = []

    def interrupt(self, *arguments):
        written.append(list(tmp_path.rglob("*.tar")))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClipStatistics, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(make_job(synthetic), tmp_path / "shards", BuildOptions())
    assert written[0]
    assert list(tmp_path.iterdir()) == []
    assert build(make_job(synthetic), tmp_path / "shards", BuildOptions()).samples["train"]


def test_small_shards_are_many(synthetic, make_job, tmp_path):
    report = build(make_job(synthetic), tmp_path / "shards", BuildOptions(max_shard_bytes=60_000, holdout=0.0))
    assert report.shards == {"train": 4}
    assert len(read_all(tmp_path / "shards")) == 4


def test_every_raw_file_but_the_lists_belongs_to_an_item(synthetic, make_job):
    assert files_of_no_item(synthetic, make_job(synthetic)) == {"metadata.json", "synthetic.json"}
