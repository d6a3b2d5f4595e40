"""From raw dances to shards: what the samples hold, how many bytes they take, and the command line."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stagecoach.data.builders import builder
from stagecoach.data.building.build import build
from stagecoach.data.building.jobs import RawError, RawItem, Statistics
from stagecoach.data.building.options import BuildOptions as ShardOptions
from stagecoach.data.dance_with_music.encode import unit_vectors
from stagecoach.data.dance_with_music.job import DanceStatistics, RawOptions
from stagecoach.data.dance_with_music.schema import dance_schema
from stagecoach.data.dance_with_music.segment import prepare_segment
from stagecoach.data.encoding.face_encoder import FaceEncoder
from stagecoach.data.encoding.image_encoders import PictureEmbedder
from stagecoach.data.encoding.latent_encoders import LatentEncoder
from stagecoach.data.format.schema import SchemaError
from stagecoach.data.format.shards import ShardWriter, write_manifest
from stagecoach.data.streaming.dataset import Sample, ShardSet
from stagecoach.data.streaming.stream import collate
from stagecoach.data.streaming.windows import Window, cut
from tests.data.building.raw_files import files_of_no_item
from tests.data.dance_with_music.conftest import FRAMES, SIZE

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(synthetic, encoders, tmp_path_factory) -> Path:
    """Built by the command line, from five dances."""
    output = tmp_path_factory.mktemp("built") / "shards"
    command = [
        sys.executable,
        ROOT / "launch/build_shards.py",
        "build",
        "--family",
        "dance_with_music",
        "--input",
        synthetic,
        "--output",
        output,
        "--height",
        SIZE,
        "--width",
        SIZE,
        "--vae",
        encoders / "vae",
        "--image-encoder",
        encoders / "image_encoder",
        "--arcface",
        encoders / "arcface.onnx",
        "--holdout",
        0.2,
        "--json",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["samples"] == {"train": 4, "val": 1}
    assert (report["frames"], report["references_without_face"]) == (5 * FRAMES, 0)
    return output


def samples(shards: Path, split: str) -> dict[str, Sample]:
    found = ShardSet.open(shards / split, dance_schema(35, 64))
    return {s.key: s for s in (found.read(k) for k in range(len(found)))}


def test_songs_and_dancers_are_held_out_together(shards):
    train, val = samples(shards, "train"), samples(shards, "val")
    for what in ("song", "subject"):
        assert not {s.meta[what] for s in train.values()} & {s.meta[what] for s in val.values()}
    assert set(val) == {"dance_00004"}


def test_samples_hold_what_the_encoders_and_the_segments_give(shards, job, synthetic, encoders):
    made = job(synthetic)
    (item, *_), bad = made.items()
    assert bad == []
    segment = prepare_segment(item.record, made._options)
    sample = samples(shards, "train")[item.key]
    for name, array in segment.arrays.items():
        np.testing.assert_array_equal(sample.arrays[name], array)
    vae = LatentEncoder(encoders / "vae", CPU, shifted=False)
    np.testing.assert_allclose(sample.arrays["latents"], torch.stack(vae.encode(segment.frames)), atol=2e-3, rtol=1e-3)
    references = segment.references
    np.testing.assert_allclose(
        sample.arrays["ref_latents"], torch.stack(vae.encode([r.picture for r in references])), atol=2e-3, rtol=1e-3
    )
    clip = PictureEmbedder(encoders / "image_encoder", CPU, "crop").encode([r.whole for r in references])
    np.testing.assert_allclose(sample.arrays["ref_clip"], clip.numpy(), atol=2e-3, rtol=1e-3)
    faces = FaceEncoder(encoders / "arcface.onnx").encode([r.face for r in references])
    np.testing.assert_allclose(
        sample.arrays["ref_arcface"] * sample.arrays["ref_arcface_norm"][:, None], faces, atol=1e-4
    )
    np.testing.assert_allclose(np.linalg.norm(sample.arrays["ref_arcface"], axis=1), 1, rtol=1e-5)
    assert sample.arrays["ref_face_valid"].tolist() == [1] * 4
    assert sample.meta["vae_scaling"] == vae.scale
    assert np.abs(sample.arrays["frame"].astype(int) - segment.frames[FRAMES // 2]).mean() < 8


def test_the_manifest_names_the_encoders_and_sums_the_statistics(shards):
    found = ShardSet.open(shards / "train", dance_schema(35, 64))
    assert set(found.manifest.encoders) == {"vae", "image_encoder", "arcface"}
    arrays = [s.arrays for s in samples(shards, "train").values()]
    music = np.concatenate([a["music"].astype(np.float64) for a in arrays])
    stats = found.statistics
    assert stats["frame_count"] == len(music) == 4 * FRAMES
    np.testing.assert_allclose(np.array(stats["music_sum"]) / stats["frame_count"], music.mean(0), rtol=1e-6, atol=1e-6)
    poses = np.concatenate([a["pose_xy"] / 65535 for a in arrays])
    np.testing.assert_allclose(
        np.array(stats["pose_sum"]) / np.array(stats["pose_count"])[:, None], poses.mean(0), rtol=1e-6
    )
    latents = np.concatenate([a["latents"].astype(np.float64) for a in arrays])
    np.testing.assert_allclose(
        np.array(stats["latent_square_sum"]) / stats["latent_count"], (latents**2).mean((0, 2, 3)), rtol=1e-6
    )
    assert stats["beat_count"] == sum(int(a["beat"].sum()) for a in arrays)


def test_statistics_of_parts_add_up(job, synthetic):
    made = job(synthetic)
    made.start()
    items = made.items()[0][:2]
    encoded = made.encode(items, [made.prepare(item) for item in items])
    whole, parts = made.statistics(), [made.statistics(), made.statistics()]
    for sample, part in zip(encoded, parts, strict=True):
        whole.add(sample)
        part.add(sample)
    merged = Statistics.merge([part.as_dict() for part in parts])
    assert merged == json.loads(json.dumps(whole.as_dict()))
    assert merged.keys() == DanceStatistics(35).as_dict().keys()


def test_settings_tell_builds_apart_but_not_places(job, synthetic, raw):
    settings = job(synthetic).settings()
    assert settings == json.loads(json.dumps(settings))
    assert job(raw).settings() == settings
    assert job(synthetic, references=2).settings() != settings
    assert job(synthetic, clip_resize="squash").settings() != settings
    (raw / "dances.json").write_text("[]")
    assert job(raw).settings() != settings


def test_references_with_noise_on_their_pixels_are_what_the_vae_makes_of_it(job, synthetic, encoders):
    plain, noisy = job(synthetic), job(synthetic, reference_noise=0.02)
    items = plain.items()[0][:2]
    for made in (plain, noisy):
        made.start()
    segments = [plain.prepare(item) for item in items]
    (without, _), (sample, other) = plain.encode(items, segments), noisy.encode(items, segments)
    vae = LatentEncoder(encoders / "vae", CPU, shifted=False)
    for k, reference in enumerate(segments[0].references):
        seed = int.from_bytes(hashlib.sha256(f"reference_noise/{items[0].key}/{k}".encode()).digest()[:8], "big") >> 1
        noise = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        pixels = torch.from_numpy(reference.picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1 + 0.02 * noise
        with torch.no_grad():
            expected = vae._vae.encode(pixels).latent_dist.mode()[0] * vae.scale
        np.testing.assert_allclose(sample.arrays["ref_latents"][k], expected, atol=2e-3, rtol=1e-3)
    assert np.abs(sample.arrays["ref_latents"] - without.arrays["ref_latents"]).max() > 4e-3
    for name in sample.arrays.keys() - {"ref_latents"}:
        np.testing.assert_array_equal(sample.arrays[name], without.arrays[name])
    assert noisy.encode(items[1:], segments[1:])[0].arrays["ref_latents"].tobytes() == (
        other.arrays["ref_latents"].tobytes()  # of its key alone, not of its neighbours
    )
    assert noisy.encoders()["vae"]["input"] == "references with noise of 0.02 on their pixels"
    assert "input" not in plain.encoders()["vae"]
    assert noisy.settings() != plain.settings()
    with pytest.raises(ValueError, match=r"reference noise 2.0 found, expected a deviation from 0 to 1"):
        job(synthetic, reference_noise=2.0)


def test_a_bad_dance_is_listed_and_the_others_stay(job, raw):
    (raw / "videos/dance_00002.mp4").write_bytes(b"no video")
    items, ((name, error),) = job(raw).items()
    assert name == "dance_00002"
    assert isinstance(error, RawError)
    assert "dance_00002.mp4: not readable" in str(error)
    assert [item.key for item in items] == ["dance_00000", "dance_00001", "dance_00003", "dance_00004"]
    assert all(isinstance(item, RawItem) for item in items)


def test_segments_of_a_dance_stay_on_one_side(job, synthetic):
    """Where songs and dancers do not say, too: drawn by dance, not by sample."""
    items, _ = job(synthetic, split_by="clip", holdout=0.4, frames=24, min_frames=12).items()
    sides = {}
    for item in items:
        sides.setdefault(item.record.dance.name, set()).add(item.split)
    assert len(items) == 15
    assert sorted({tuple(found) for found in sides.values()}) == [("train",), ("val",)]


def test_faces_that_are_not_known_are_zeros_that_say_so():
    vectors, lengths = unit_vectors(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert lengths.tolist() == [5.0, 0.0]


def test_a_picture_shows_skeletons_faces_and_beats(shards):
    sample = next(iter(samples(shards, "train").values()))
    family = builder("dance_with_music")
    picture = family.picture(sample)
    assert picture.shape == (SIZE + 16, 6 * SIZE, 3)
    plain = {name: array for name, array in sample.arrays.items() if name != "frame"}
    assert family.picture(Sample(sample.key, sample.shard, plain, sample.meta)).shape == (SIZE + 16, 5 * SIZE, 3)
    yellow = (picture[-1] == (255, 210, 60)).all(-1).nonzero()[0]
    expected = (sample.arrays["beat"].nonzero()[0] + 0.5) / FRAMES * 6 * SIZE
    np.testing.assert_array_equal(yellow, expected.astype(int))
    assert (picture == (80, 255, 120)).all(-1).any(), "the box of the face"


def test_windows_cut_poses_and_music_alike(shards):
    schema = dance_schema(35, 64)
    sample = next(iter(samples(shards, "train").values()))
    window, start = cut(schema, sample, Window(12, stride=2), seed=0, uid=3)
    part = slice(start, start + 23, 2)
    for name in ("latents", "pose_xy", "pose_conf", "face_box", "face_valid", "music", "beat", "onset"):
        np.testing.assert_array_equal(window.arrays[name], sample.arrays[name][part])
    assert window.arrays["ref_latents"].shape[0] == 4
    batch = collate(schema, [window, window])
    assert batch["pose_xy"].float().div(65535).amax() <= 1
    assert batch["music"].shape == (2, 12, 35)


def full_arrays(frames: int, music: int) -> dict[str, np.ndarray]:
    """A segment at 512 x 512 with one reference."""
    shapes = {
        "latents": ("f2", (frames, 4, 64, 64)),
        "ref_latents": ("f2", (1, 4, 64, 64)),
        "ref_frame": ("i8", (1,)),
        "ref_clip": ("f2", (1, 768)),
        "ref_arcface": ("f4", (1, 512)),
        "ref_arcface_norm": ("f4", (1,)),
        "ref_face_valid": ("u1", (1,)),
        "pose_xy": ("u2", (frames, 134, 2)),
        "pose_conf": ("u1", (frames, 134)),
        "face_box": ("f2", (frames, 4)),
        "face_valid": ("u1", (frames,)),
        "music": ("f2", (frames, music)),
        "beat": ("u1", (frames,)),
        "onset": ("f2", (frames,)),
    }
    return {name: np.zeros(shape, dtype) for name, (dtype, shape) in shapes.items()}


@pytest.mark.parametrize(
    ("frames", "music", "megabytes"), [(24, 4800, 1.07), (150, 4800, 6.50), (24, 35, 0.84), (150, 35, 5.07)]
)
def test_a_sample_takes_the_bytes_that_were_planned(tmp_path, frames, music, megabytes):
    """Section 3.5 of the design: per frame 32,768 of latents, 670 of pose, 9600 or 70 of music, 3 of beat and onset, 9
    of the face box; per reference 32,768 + 1536 + 2048. Headers and tar blocks come on top."""
    arrays = full_arrays(frames, music)
    per_frame = {"latents": 32768, "music": 2 * music, "beat": 1, "onset": 2, "face_box": 8, "face_valid": 1}
    assert {name: arrays[name].nbytes for name in per_frame} == {n: frames * b for n, b in per_frame.items()}
    assert arrays["pose_xy"].nbytes + arrays["pose_conf"].nbytes == frames * 670
    assert [arrays[n].nbytes for n in ("ref_latents", "ref_clip", "ref_arcface")] == [32768, 1536, 2048]
    schema = dance_schema(music)
    with ShardWriter(tmp_path, schema) as writer:
        writer.add("dance", arrays)
    write_manifest(tmp_path, schema, writer.shards, {}, {})
    size = writer.shards[0]["bytes"]
    assert size == pytest.approx(megabytes * 1e6, rel=0.03, abs=3e4)
    read = ShardSet.open(tmp_path, schema).read(0)
    assert read.arrays["pose_xy"].dtype == np.uint16


def test_every_raw_file_but_the_lists_belongs_to_an_item(synthetic, job):
    assert files_of_no_item(synthetic, job(synthetic)) == {"dances.json", "synthetic.json"}


def test_pictures_of_music_are_built_counted_and_asked_for_by_their_channels(job, raw, tmp_path):
    """The guide's files of (feature_dim, height, width), one per frame."""
    (raw / "dances.json").write_text("[]")
    maps = np.random.default_rng(0).normal(3, 2, size=(FRAMES, 3, 8, 6)).astype(np.float32)
    for k in range(5):
        if k > 1:
            (raw / f"videos/dance_{k:05d}.mp4").unlink()
            continue
        folder = raw / f"music_features/dance_{k:05d}"
        folder.mkdir(parents=True)
        for number, frame in enumerate(maps + k):
            np.save(folder / f"frame_{number:03d}.npy", frame)
    build(job(raw, music="files", holdout=0.0), tmp_path / "shards", ShardOptions(holdout=0.0))
    found = ShardSet.open(tmp_path / "shards/train", dance_schema(35, 64, 3))
    for k in range(2):
        np.testing.assert_array_equal(found.read(k).arrays["music_map"], (maps + k).astype(np.float16))
    assert found.statistics["music_map_count"] == 2 * FRAMES * 8 * 6
    whole = np.concatenate([maps, maps + 1]).astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(found.statistics["music_map_sum"], whole.sum((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(found.statistics["music_map_square_sum"], (whole**2).sum((0, 2, 3)), rtol=1e-9)
    ShardSet.open(tmp_path / "shards/train", dance_schema(35, 64))  # a network without them reads the others
    with pytest.raises(SchemaError, match=r"'music_map' was built as f16 \['F', 3, .*expected f16 \['F', 7, "):
        ShardSet.open(tmp_path / "shards/train", dance_schema(35, 64, 7))


def test_one_number_that_is_not_finite_is_named_with_its_place(job, raw):
    """In the sums of a set it would be that feature of every clip."""
    table = np.zeros((FRAMES, 35), np.float32)
    table[3, 5] = np.nan
    (raw / "music_features").mkdir()
    np.save(raw / "music_features/dance_00000.npy", table)
    made = job(raw, music="files")
    with pytest.raises(RawError, match=r"dance_00000\.npy: nan in row 3, number 5, expected finite numbers"):
        made.prepare(made.items()[0][0])
    table[3, 5] = 1e5
    np.save(raw / "music_features/dance_00000.npy", table)
    with pytest.raises(RawError, match=r"100000 in row 3, number 5, expected finite numbers up to 65504"):
        made.prepare(made.items()[0][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose_canvas": "1280"}, "canvas '1280' found, expected WIDTHxHEIGHT"),
        ({"pose_canvas": "0x5"}, "canvas '0x5' found"),
        ({"person": "tall"}, "person 'tall' found, expected largest or a number from 0"),
        ({"pose_rate": -1.0}, r"pose rate -1\.0 found"),
    ],
)
def test_words_that_say_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RawOptions(**changes)


def test_options_of_poses_reach_their_reading():
    asked = RawOptions(
        pose_unit="pixel",
        pose_canvas="1280x720",
        pose_confidence="percent",
        pose_order="coco",
        person="1",
        pose_rate=12.5,
    ).poses()
    assert (asked.unit, asked.canvas, asked.confidence, asked.order, asked.person, asked.rate) == (
        "pixel",
        (1280.0, 720.0),
        "percent",
        "coco",
        1,
        12.5,
    )
