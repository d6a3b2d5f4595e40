"""Evaluation of folders: closed cases of what it says of equal, turned, darker and damaged samples."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from stagecoach.data.fantasy_world.camera_files import write_cameras
from stagecoach.data.fantasy_world.camera_track import Cameras
from stagecoach.data.files import seal_directory, write_json
from stagecoach.data.format.shards import ShardWriter, write_manifest
from stagecoach.data.outputs.dance import write_poses
from stagecoach.data.outputs.depth import write_depth
from stagecoach.data.outputs.point_cloud import PointCloud, write_ply
from stagecoach.data.outputs.video import write_video
from stagecoach.models import get_family
from stagecoach.models.metrics.measuring import COMPARED, GROUPS, OF_SETS, PER_SAMPLE
from stagecoach.models.metrics.reading import read_sample
from stagecoach.models.metrics.registry import METRICS
from stagecoach.models.metrics.weights import WeightPaths
from stagecoach.trainer.evaluating.evaluation import Settings, chosen_metrics, evaluate
from tests.commands import run_stagecoach
from tests.tiny_annotators import draw_person, write_onnx_poses

FRAMES, HEIGHT, WIDTH = 5, 32, 48
INNER = np.tile([40.0, 40.0, WIDTH / 2, HEIGHT / 2], (FRAMES, 1))
ALL = Settings(tuple(METRICS), device="cpu")


def path(degrees=0.0, scale=1.0):
    """A camera that goes right and forward, and from frame 1 on looks to the right by ``degrees``."""
    turn = np.radians(degrees)
    outer = np.zeros((FRAMES, 3, 4))
    for k in range(FRAMES):
        angle = turn if k else 0.0
        outer[k, :, :3] = [[math.cos(angle), 0, -math.sin(angle)], [0, 1, 0], [math.sin(angle), 0, math.cos(angle)]]
        outer[k, :, 3] = -outer[k, :, :3] @ (scale * np.array([0.05 * k, 0.0, 0.1 * k]))
    return outer


def write_world(folder, seed, outer, depth_scale=1.0):
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    smooth = random.integers(0, 256, (1, 4, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2).repeat(FRAMES, 0)
    write_video(folder / "video.mp4", smooth, 16)
    write_depth(folder / "depth.npz", depth_scale * np.full((FRAMES, HEIGHT, WIDTH), 2.0))
    write_cameras(folder / "cameras.json", Cameras(outer, INNER, HEIGHT, WIDTH), 16)
    points = random.normal(size=(50, 3)).astype(np.float32)
    write_ply(folder / "points.ply", PointCloud(points, np.zeros((50, 3), np.uint8)))


def write_picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(path)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    base = tmp_path_factory.mktemp("worlds")
    for seed in range(3):
        write_world(base / "true" / f"clip{seed}", seed, path())
        write_world(base / "turned" / f"clip{seed}", seed, path(5.0, 2.0), 1.5)
        seal_directory(base / "turned" / f"clip{seed}")
    return base


def test_every_metric_of_the_registry_is_measured_by_one_group_or_of_sets():
    names = [name for group in GROUPS for name in group.names]
    assert len(names) == len(set(names))
    assert sorted(names) == sorted(PER_SAMPLE)
    assert {*PER_SAMPLE, *OF_SETS} == set(METRICS)
    assert set(OF_SETS) == {"fid", "kid", "fvd", "fid_k_2d", "diversity_2d"}
    assert set(COMPARED) <= set(PER_SAMPLE)


def test_what_equals_the_truth_has_no_error_and_intervals_of_no_width(worlds, tmp_path):
    result = evaluate([worlds / "true"], tmp_path, ALL, worlds / "true")
    numbers = result["metrics"]
    zero = "rotation_error translation_error cam_mc ate depth_abs_rel depth_rmse_affine chamfer motion_error"
    expected = {"psnr": 100, "ssim": 1, "auc_30": 1, "depth_delta1": 1, **dict.fromkeys(zero.split(), 0)}
    for name, value in expected.items():
        found = numbers[name]
        assert found["mean"] == pytest.approx(value, abs=1e-5), name
        assert found["low"] == pytest.approx(found["high"], abs=1e-5)
        assert (found["n"], found["left_out"], found["unit"]) == (3, 0, METRICS[name].unit)
        assert found["better"] == METRICS[name].better
    # A camera at rest is turned by nothing but goes nowhere; the first frame held is this video; one depth is this one.
    assert numbers["rotation_error"]["baseline"] == 0
    assert numbers["translation_error"]["baseline"] > 0.5
    assert numbers["auc_30"]["baseline"] == 0
    assert numbers["depth_abs_rel"]["baseline"] == 0
    assert "clip_score" not in numbers
    absent = result["absent"]
    assert absent["lpips"] == "torchvision's AlexNet or VGG-16 file is not given, expected lpips: its path"
    assert absent["fid"].startswith("the TorchScript file of Inception is not given")
    assert absent["ms_ssim"].startswith("pictures of 32x48 found")
    assert absent["pose_error_px"] == "no pose of what was generated"
    assert set(numbers) | set(absent) == set(METRICS)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == ["clip0", "clip1", "clip2"]
    assert lines[0]["metrics"]["psnr"] == pytest.approx(100)
    page = (tmp_path / "evaluation.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in numbers)
    assert "<script" not in page
    assert "http" not in page


def test_a_path_turned_by_5_degrees_has_that_error_and_its_scale_has_none(worlds, tmp_path):
    found = evaluate([worlds / "turned"], tmp_path, ALL, worlds / "true", worlds / "true")
    numbers = found["metrics"]
    assert numbers["rotation_error"]["mean"] == pytest.approx(5)
    assert numbers["translation_error"]["mean"] == pytest.approx(0, abs=1e-9)
    assert numbers["depth_abs_rel"]["mean"] == pytest.approx(0.5)
    assert numbers["depth_abs_rel_median"]["mean"] == pytest.approx(0)
    # Directions are seen from a camera that is turned by 5 degrees, which is the edge between two bins.
    assert 25 / 30 <= numbers["auc_30"]["mean"] <= 26 / 30
    rotation = found["against"]["metrics"]["rotation_error"]
    assert (rotation["difference"]["mean"], rotation["above"], rotation["below"]) == (pytest.approx(5), 3, 0)
    assert rotation["p"] == pytest.approx(0.25)
    assert rotation["ahead"] == "b"
    assert found["against"]["metrics"]["psnr"]["ahead"] is None


def test_pictures_of_half_the_error_are_six_decibels_ahead_pair_by_pair(tmp_path):
    for name, levels in {"true": (90, 100, 110, 120), "a": (100, 110, 120, 130), "b": (110, 120, 130, 140)}.items():
        for k, level in enumerate(levels):
            write_picture(tmp_path / name / f"p{k}.png", level)
    write_picture(tmp_path / "a" / "alone.png", 0)
    settings = Settings(chosen_metrics("psnr, motion_amount"), device="cpu")
    result = evaluate([tmp_path / "a"], tmp_path / "out", settings, tmp_path / "true", tmp_path / "b")
    assert set(result["metrics"]) == {"psnr"}
    assert result["metrics"]["psnr"]["mean"] == pytest.approx(20 * math.log10(25.5))
    assert (result["metrics"]["psnr"]["n"], result["metrics"]["psnr"]["left_out"]) == (4, 1)
    # One colour is what each true picture is.
    assert result["metrics"]["psnr"]["baseline"] == pytest.approx(100)
    paired = result["against"]["metrics"]["psnr"]
    assert paired["difference"]["mean"] == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert (paired["above"], paired["below"], paired["equal"], paired["p"]) == (4, 0, 0, 0.125)
    assert paired["ahead"] == "a"
    assert "A against B" in (tmp_path / "out" / "evaluation.html").read_text()


def test_a_damaged_sample_is_one_line_and_the_others_are_measured(worlds, tmp_path, caplog):
    base = tmp_path / "made"
    write_world(base / "clip0", 0, path())
    write_world(base / "clip1", 1, path())
    seal_directory(base / "clip1")
    (base / "clip1" / "depth.npz").write_bytes(b"PK")
    (base / "clip2").mkdir()
    (base / "clip2" / "video.mp4").write_bytes(b"no video")
    result = evaluate([base], tmp_path / "out", Settings(("psnr",), device="cpu"), worlds / "true")
    assert sorted(result["failed"]) == ["clip1", "clip2"]
    assert "depth.npz: 2 bytes, expected" in result["failed"]["clip1"]
    assert (result["metrics"]["psnr"]["n"], result["metrics"]["psnr"]["left_out"]) == (1, 2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [("error" in line) for line in lines] == [False, True, True]
    assert [record.message.split(" is left out")[0] for record in caplog.records if record.levelname == "ERROR"] == [
        "clip1",
        "clip2",
    ]


def test_what_detectors_found_is_read_from_a_folder_of_its_own_and_boxes_from_the_request(tmp_path):
    sample = tmp_path / "made" / "room"
    write_picture(sample / "picture.png", 100)
    objects = [{"bbox": [0, 0, 0.5, 0.5], "category_name": "ball", "caption": "a red ball"}]
    entry = {"global_caption": "a room", "objects": objects}
    write_json(
        sample / "result.json",
        {"request": {"id": "room", "seed": 1, "entry": entry}, "seconds": 4.0, "peak_bytes": 2**31},
    )
    found = tmp_path / "found" / "room"
    found.mkdir(parents=True)
    face = (np.array([[10, 12], [20, 12], [15, 18], [11, 23], [19, 23]]) * 1.0).tolist()
    write_json(found / "faces.json", {"frames": [[face]]})
    detections = tmp_path / "detections.json"
    write_json(detections, {"room": [{"category": "ball", "box": [0, 0, 0.5, 0.4], "score": 0.9}]})
    names = ("layout_grounding_score", "face_detection_rate", "face_recall", "seconds_per_sample")
    names = (*names, "frames_per_second", "peak_memory")
    settings = Settings(names, WeightPaths(detections=detections), "cpu")
    result = evaluate([tmp_path / "made"], tmp_path / "out", settings, estimates=tmp_path / "found")
    means = {name: value["mean"] for name, value in result["metrics"].items()}
    assert means == {
        "layout_grounding_score": pytest.approx(0.8),
        "face_detection_rate": 1,
        "seconds_per_sample": 4,
        "frames_per_second": 0.25,
        "peak_memory": 2,
    }
    assert result["absent"]["face_recall"] == "no reference of what was asked for"
    assert set(result["weights"]) == {"detections"}


def test_a_reference_is_found_where_the_requests_were(tmp_path):
    write_picture(tmp_path / "asked" / "ball.png", 200)
    answer = tmp_path / "made" / "room"
    write_picture(answer / "picture.png", 100)
    ball = {"bbox": [0, 0, 0.5, 0.5], "category_name": "ball", "caption": "a red ball", "reference": "ball.png"}
    request = {"entry": {"global_caption": "a room", "objects": [ball]}}
    for source, there in (({"source": str(tmp_path / "asked")}, True), ({}, False)):
        write_json(answer / "result.json", {"request": request, **source})
        [shown] = read_sample("room", answer).objects
        assert (shown.reference is not None) == there


def test_truth_is_read_from_shards_and_from_a_list(worlds, tmp_path):
    family = get_family("fantasy_world")
    config = family.sizes["tiny"]
    schema = family.schema(config)
    fields = family.example_batch(config, 1, 1, "cpu", 0)
    arrays = {f.name: fields[f.name][0] for f in schema.fields if f.name in fields}
    arrays = {k: (v.view(torch.uint16) if v.dtype == torch.bfloat16 else v).numpy() for k, v in arrays.items()}
    arrays |= {
        "depth": np.full((FRAMES, HEIGHT, WIDTH), 2, np.float16),
        "extrinsics": path().astype(np.float32),
        "intrinsics": INNER.astype(np.float32),
    }
    arrays.pop("frame", None)
    with ShardWriter(tmp_path / "shards" / "val", schema) as writer:
        writer.add("clip0", arrays, {})
    write_manifest(tmp_path / "shards" / "val", schema, writer.shards, {}, {})
    listed = tmp_path / "true.jsonl"
    entry = {"id": "clip0", "video": str(worlds / "true" / "clip0" / "video.mp4"), "prompt": "a room"}
    listed.write_text(json.dumps(entry | {"depth": str(worlds / "true" / "clip0" / "depth.npz")}) + "\n")
    settings = Settings(("depth_abs_rel", "rotation_error", "psnr"), device="cpu")
    shards = evaluate([worlds / "turned"], tmp_path / "a", settings, tmp_path / "shards")
    assert shards["metrics"]["depth_abs_rel"]["mean"] == pytest.approx(0.5)
    assert shards["metrics"]["rotation_error"]["mean"] == pytest.approx(5, abs=1e-4)
    assert shards["metrics"]["rotation_error"]["left_out"] == 2
    assert shards["absent"] == {"psnr": "no frames of the truth"}
    lines = evaluate([worlds / "turned"], tmp_path / "b", settings, listed)
    assert lines["metrics"]["psnr"]["mean"] == 100
    assert lines["absent"] == {"rotation_error": "no cameras of the truth, nor of what was asked for"}
    listed.write_text(json.dumps({"id": "clip0", "vidoe": "x"}))
    with pytest.raises(ValueError, match=r"true.jsonl: line 1: 'vidoe' is unknown, expected some of .*video"):
        evaluate([worlds / "turned"], tmp_path / "c", settings, listed)


@pytest.mark.parametrize(
    ("words", "message"),
    [("psnr,pnsr", "metric 'pnsr' is unknown; did you mean 'psnr'"), (" , ", "no metric is named, expected some of")],
)
def test_an_unknown_metric_is_refused_with_the_known_ones(words, message):
    with pytest.raises(ValueError, match=message):
        chosen_metrics(words)
    assert chosen_metrics("all") == tuple(METRICS)


def test_a_dance_that_was_not_painted_is_measured_by_its_poses_and_beats(tmp_path):
    folder, random = tmp_path / "made" / "song", np.random.default_rng(0)
    folder.mkdir(parents=True)
    pose = np.concatenate([random.uniform(0.3, 0.6, (1, 134, 2)), np.full((1, 134, 1), 0.9)], -1).repeat(40, 0)
    pose[:, :, 0] += 0.05 * np.cos((np.arange(40) - 10.5) * np.pi / 10)[:, None]  # slowest from frame 10 to 11
    frames = [{"frame_id": k, "keypoints": points} for k, points in enumerate(pose.tolist())]
    write_json(folder / "pose.json", {"poses": frames})
    write_json(folder / "beats.json", {"frames": 44, "fps": 30, "beats": [0.3333, 0.6667], "beat_frames": [10, 20]})
    write_json(folder / "result.json", {"facts": {"fps": 30, "height": 100, "width": 200, "frames": 40}})
    moved = [{"keypoints": [[x + 0.02, y, c] for x, y, c in frame["keypoints"]]} for frame in frames]
    (tmp_path / "true" / "song").mkdir(parents=True)
    write_json(tmp_path / "true" / "song" / "pose.json", {"poses": moved})
    settings = Settings(("pose_error_px", "beat_alignment", "psnr"), device="cpu")
    result = evaluate([tmp_path / "made"], tmp_path / "out", settings, tmp_path / "true")
    assert result["metrics"]["pose_error_px"]["mean"] == pytest.approx(4, rel=1e-4)
    assert result["metrics"]["beat_alignment"]["mean"] == pytest.approx(1)
    assert result["absent"] == {"psnr": "no frames of what was generated"}


def test_poses_and_faces_of_the_generated_video_are_estimated_by_networks(tmp_path):
    """Closed-form networks, which find spots: the even points of the body at one, the odd ones at the other."""
    detector, pose = write_onnx_poses(tmp_path / "networks")
    spots = [((60 + 4 * k, 50), (80 + 4 * k, 120)) for k in range(3)]
    (tmp_path / "made" / "a").mkdir(parents=True)
    write_video(
        tmp_path / "made" / "a" / "video.mp4",
        np.stack([draw_person(180, 160, (40, 20, 130, 150), *both) for both in spots]),
        30,
    )
    points = np.zeros((3, 134, 3), np.float32)
    for point, spot, aside in ((4, 0, 0), (15, 1, 0), (3, 0, 12)):  # a wrist, an eye, an elbow, asked for 12 px away
        points[:, point] = [[(both[spot][0] + aside) / 160, both[spot][1] / 180, 1] for both in spots]
    write_poses(tmp_path / "made" / "a" / "pose.json", points, 30, 180, 160, "given")
    names = ("pose_following_px", "pose_following_pck", "face_detection_rate")
    paths = WeightPaths(pose_estimator=pose, person_detector=detector)
    found = evaluate([tmp_path / "made"], tmp_path / "out", Settings(names, paths, "cpu"))
    assert not found["absent"]
    means = {name: value["mean"] for name, value in found["metrics"].items()}
    assert means["pose_following_px"] == pytest.approx(4, abs=1)
    assert means["pose_following_pck"] == pytest.approx(2 / 3)
    assert means["face_detection_rate"] == 1
    found = evaluate([tmp_path / "made"], tmp_path / "b", Settings(names, WeightPaths(pose_estimator=pose), "cpu"))
    assert not found["metrics"]
    assert set(found["absent"].values()) == {
        "a detector of persons (.onnx or folder) is not given, expected person_detector: its path"
    }


def test_of_several_processes_that_a_launcher_starts_the_first_measures(worlds, tmp_path, monkeypatch):
    words = ("evaluate", worlds / "true", "--metrics", "psnr", "--truth", worlds / "true", "--output", tmp_path / "out")
    monkeypatch.setenv("RANK", "1")
    assert run_stagecoach(*words) == (None, 0)
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("RANK", "0")
    assert run_stagecoach(*words)[0]["metrics"]["psnr"]["mean"] == 100
