"""launch/build_shards.py for this family, as people type it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run_shards

ROOT = Path(__file__).parents[3]
FAMILY = ("--family", "movie_post_production")


def synthesize(base: Path) -> list[str]:
    return [
        "synthesize",
        *FAMILY,
        "--output",
        str(base / "raw"),
        "--clips",
        "6",
        "--sizes",
        "64x64,64x96",
        "--encoders",
        str(base / "encoders"),
    ]


def build_shards(base: Path, *options: str) -> list[str]:
    encoders = base / "encoders"
    return [
        "build",
        *FAMILY,
        "--input",
        str(base / "raw"),
        "--output",
        str(base / "shards"),
        "--flux",
        str(encoders),
        "--clip",
        str(encoders / "image_encoder"),
        "--dino",
        str(encoders / "dino"),
        "--sizes",
        "64x64,64x96",
        "--text-length",
        "48",
        *options,
    ]


def test_synthetic_pictures_become_shards_that_check_inspect_and_preview_read(tmp_path, capsys):
    made, _ = run_shards(*synthesize(tmp_path))
    assert (made["pictures"], made["encoders"]) == (6, str(tmp_path / "encoders"))
    built, _ = run_shards(*build_shards(tmp_path))
    assert sum(built["samples"].values()) == 6
    assert built["dropped_objects"] == 0
    checked, code = run_shards("check", str(tmp_path / "shards"))
    assert (checked["problems"], code) == ([], 0)
    split = run_shards("inspect", str(tmp_path / "shards"))[0]["train"]
    assert {"latent", "t5", "pooled", "boxes", "depth", "clip", "dino", "object_text", "image"} < set(
        split["field_bytes"]
    )
    run_shards("preview", str(tmp_path / "shards"), "--output", str(tmp_path / "p.png"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "train" in capsys.readouterr().out


@pytest.mark.slow
def test_two_workers_make_what_one_makes(synthetic, encoders, tmp_path):
    fingerprints = []
    for workers in ("1", "2"):
        output = tmp_path / workers
        command = [
            "build",
            *FAMILY,
            "--input",
            str(synthetic),
            "--output",
            str(output),
            "--flux",
            str(encoders),
            "--clip",
            str(encoders / "image_encoder"),
            "--dino",
            str(encoders / "dino"),
            "--sizes",
            "64x64",
            "--text-length",
            "16",
            "--part-items",
            "2",
            "--workers",
            workers,
        ]
        run_shards(*command)
        fingerprints.append(
            [json.loads((output / split / "manifest.json").read_text())["fingerprint"] for split in ("train", "val")]
        )
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.slow
def test_the_command_line_prints_json_alone_and_a_mistake_in_one_sentence(tmp_path):
    def run(command: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "launch/build_shards.py"), *command],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            check=False,
            timeout=240,
            env={**os.environ, "PYTHONPATH": ""},
        )

    assert json.loads(run([*synthesize(tmp_path), "--json"]).stdout)["pictures"] == 6
    done = run(build_shards(tmp_path, "--json"))
    assert sum(json.loads(done.stdout)["samples"].values()) == 6, done.stderr
    path = tmp_path / "raw/captions/scene_00003.json"
    path.write_text(path.read_text().replace('"depth_label": "', '"depth_label": "very '))
    done = run(build_shards(tmp_path, "--replace"))
    assert done.returncode == 1
    assert "captions/scene_00003.json: object 0: 'depth_label' is 'very " in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr
