"""launch/build_shards.py as people type it: one process per command, JSON alone on the standard output, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.commands import execute, parse, render

ROOT = Path(__file__).parents[2]
SIZE = ("--frames", "5", "--height", "32", "--width", "48")


def run(*arguments, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch/build_shards.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "PYTHONPATH": ""})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A raw set, tiny encoders and shards, each written by the command."""
    base = tmp_path_factory.mktemp("cli")
    (base / "data").mkdir()
    (base / "data/__init__.py").write_text("raise ImportError('another package named data')")
    done = run("synthesize", "--output", "raw", "--clips", 3, *SIZE, "--seed", 1, "--encoders", "encoders", "--json",
               cwd=base)
    assert json.loads(done.stdout) == {"output": "raw", "clips": 3, "encoders": "encoders"}, done.stderr
    done = run(*build_command("raw", "shards"), "--json", cwd=base)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sum(result["samples"].values()) == 3
    assert set(result["samples"]) == {"train", "val"}
    assert result["output"] == "shards"
    return base


def build_command(raw: str, output: str) -> list:
    parts = [f"--{part}=encoders/{part.replace('-', '_')}" for part in ("vae", "text-encoder", "tokenizer")]
    return ["build", "--family", "fantasy_world", "--input", raw, "--output", output, *SIZE, *parts]


def test_check_inspect_and_preview_read_what_build_wrote(made, capsys):
    results = {}
    for command in ("check", "inspect", "preview"):
        picture = ["--output", str(made / "p.png")] if command == "preview" else []
        results[command], code = execute(parse([command, str(made / "shards"), *picture]))
        assert code == 0
        render(command, results[command])
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
    assert not (tmp_path / "shards").exists()
