"""launch/build_shards.py as people type it: one process per command, JSON alone on the standard output, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run_shards
from tests.data.building.toy_job import hashes

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "launch/build_shards.py")
SIZE = ("--frames", "5", "--height", "32", "--width", "48")


def run(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ""},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A raw set, tiny encoders and shards, each written by the command."""
    base = tmp_path_factory.mktemp("cli")
    (base / "data").mkdir()
    (base / "data/__init__.py").write_text("raise ImportError('another package named data')")
    done = run(
        "synthesize", "--output", "raw", "--clips", 3, *SIZE, "--seed", 1, "--encoders", "encoders", "--json", cwd=base
    )
    assert json.loads(done.stdout) == {"output": "raw", "clips": 3, "encoders": "encoders"}, done.stderr
    done = run(*build_command("raw", "shards"), "--json", cwd=base)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sum(result["samples"].values()) == 3
    assert set(result["samples"]) == {"train", "val"}
    assert result["output"] == "shards"
    return base


def build_command(raw: str, output: str, encoders: str = "encoders") -> list:
    parts = [f"--{part}={encoders}/{part.replace('-', '_')}" for part in ("vae", "text-encoder", "tokenizer")]
    return ["build", "--family", "fantasy_world", "--input", raw, "--output", output, *SIZE, *parts]


def test_check_inspect_and_preview_read_what_build_wrote(made, capsys):
    results = {}
    for command in ("check", "inspect", "preview"):
        picture = ["--output", str(made / "p.png")] if command == "preview" else []
        results[command], code = run_shards(command, made / "shards", *picture)
        assert code == 0
    assert results["check"] == {"problems": []}
    assert sum(split["samples"] for split in results["inspect"].values()) == 3
    assert (made / "p.png").read_bytes().startswith(b"\x89PNG")
    words = capsys.readouterr().out
    assert "all shards are whole" in words
    assert "extrinsics" in words


def test_check_of_a_damaged_shard_names_it_and_fails(made, tmp_path):
    shards = shutil.copytree(made / "shards", tmp_path / "shards")
    tar = next((shards / "val").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)
    done = run("check", shards, cwd=tmp_path)
    assert done.returncode == 1
    assert str(tar) in done.stdout


def test_a_mistake_is_one_sentence_on_the_standard_error(made, tmp_path):
    raw = shutil.copytree(made / "raw", tmp_path / "raw")
    (raw / "camera_params/scene_00001.txt").write_text("0 0.5 0.5 0.5 0.5 0 0 1 0 0\n")
    done = run(*build_command(str(raw), str(tmp_path / "shards")), cwd=made)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{raw}/camera_params/scene_00001.txt:1: 10 columns found, expected 19" in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "shards").exists(), "nothing was made that a second build could go on with"


ONE_EACH = ("--part-items", "1")


def command(base: Path, output: Path, *more: str) -> list[str]:
    return list(map(str, [*build_command(str(base / "raw"), str(output), str(base / "encoders")), *ONE_EACH, *more]))


@pytest.fixture(scope="module")
def expected(made, tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("alone") / "shards"
    result, code = run_shards(*command(made, output))
    assert (result["finished"], code) == (True, 0)
    return hashes(output)


def array_task(monkeypatch, task: int, count: int) -> None:
    for name, value in (("ID", task), ("MIN", 0), ("MAX", count - 1), ("STEP", 1), ("COUNT", count)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_tasks_of_an_array_share_the_work_and_the_last_one_finishes(made, expected, tmp_path, monkeypatch, capsys):
    results = []
    for task in (1, 0):
        array_task(monkeypatch, task, 2)
        result, code = run_shards(*command(made, tmp_path / "shards"))
        assert code == 0
        results.append(result)
    first, last = results
    assert (first["finished"], first["samples"], first["missing_parts"]) == (False, {}, 2)
    assert "worker 1 of 2 has made its parts; 2 of 3 are not there yet" in " ".join(capsys.readouterr().out.split())
    assert last["finished"]
    assert sum(last["samples"].values()) == 3
    assert (first["encoded"], last["encoded"]) == (1, 2)
    assert last["samples_per_second"] > 0
    assert hashes(tmp_path / "shards") == expected


def test_what_was_left_out_is_in_the_summary(made, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(made / "raw", raw)
    (raw / "camera_params/scene_00001.txt").write_text("")
    (tmp_path / "encoders").symlink_to(made / "encoders")
    result, _ = run_shards(*command(tmp_path, tmp_path / "shards", "--skip-bad", "--holdout", "0"))
    assert result["skipped"] == 1
    (reason,) = result["reasons"]
    assert "scene_00001.txt: 0 cameras found, expected a line for each" in reason
    words = "".join(capsys.readouterr().out.split())
    assert "0camerasfound,expectedaline" in words
    assert "allin" in words
    assert "shards/skipped.jsonl" in words
    assert "MB" in words


def launch(launcher: list[str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, SCRIPT, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )


@pytest.mark.slow
def test_local_workers_make_the_same_shards_and_json_stands_alone(made, expected, tmp_path):
    done = launch([sys.executable], *command(made, tmp_path / "shards", "--workers", "2", "--json"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["encoded"] == 3
    assert "encoding" in done.stderr
    assert hashes(tmp_path / "shards") == expected


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_ranks_of_a_launcher_share_the_work(made, expected, tmp_path, launcher):
    binary = str(Path(sys.executable).parent / launcher)
    words = {
        "torchrun": [binary, "--standalone", "--nproc_per_node=2"],
        "deepspeed": [binary, "--num_accelerators", "2", "--master_port", "29713"],
    }[launcher]
    done = launch(words, *command(made, tmp_path / "shards"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "shards") == expected


@pytest.mark.slow
def test_a_rank_other_than_the_first_says_what_failed_too(made, tmp_path):
    shutil.copytree(made / "raw", tmp_path / "raw")
    (tmp_path / "encoders").symlink_to(made / "encoders")
    for path in (tmp_path / "raw/camera_params").iterdir():
        path.write_text("")
    binary = str(Path(sys.executable).parent / "torchrun")
    done = launch([binary, "--standalone", "--nproc_per_node=2"], *command(tmp_path, tmp_path / "shards"), cwd=tmp_path)
    assert done.returncode != 0
    assert "worker 1 of 2: " in done.stderr
    assert "0 cameras found" in done.stderr
