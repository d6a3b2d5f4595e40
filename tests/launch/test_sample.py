"""The command that samples, as processes: the same files on one and two ranks, killed and continued, asked to stop."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from stagecoach.data.encoding.tiny_encoders import write_wan_encoders
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.files import TEMPORARY
from stagecoach.models.fantasy_world.config import SIZES
from tests.commands import run_stagecoach
from tests.models.weights.held import hold
from tests.pair import free_port
from tests.tiny_data import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
PROMPT = "a red ball on a table"
GOOD = {"pan": {"camera": "pan"}, "still": {"seed": 4}, "push": {"camera": "push"}, "roll": {"camera": "roll"}}
TWO = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Words of a command that samples four requests, with two bad ones between them."""
    folder = tmp_path_factory.mktemp("given")
    frames = np.random.default_rng(1).integers(0, 256, (6, 64, 96, 3), np.uint8)
    write_wan_encoders(folder / "encoders", frames, [PROMPT], 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WanTransformer3DModel(**SIZES["tiny"].backbone.diffusers()).save_pretrained(folder / "base")
    config = SIZES["tiny"].model_copy(update={"base": str(folder / "base"), "allow_random_init": False})
    held = hold(folder / "run", "fantasy_world", config=config)
    lines = [json.dumps({"id": name, "prompt": PROMPT, **more}) for name, more in GOOD.items()]
    lines[1:1] = ['{"id":', json.dumps({"id": "wrong", "promt": PROMPT})]
    (folder / "requests.jsonl").write_text("\n".join(lines))
    paths = {"adapter": held.adapter, "components": folder / "encoders", "requests": folder / "requests.jsonl"}
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


def begin(prefix: list[str], given: list[str], output: Path, **rank: object) -> subprocess.Popen:
    command = [*prefix, str(ROOT / "launch" / "sample.py"), *given, "--output", str(output), "--steps", "4", "--json"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    environment |= {name: str(value) for name, value in rank.items()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes)


def wait_for_one(process: subprocess.Popen, output: Path) -> set[str]:
    """Until the first answer is there, and not the last."""
    end = time.monotonic() + 240
    while not (found := sealed(output)):
        assert process.poll() is None, process.stderr.read()[-4000:]
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def sealed(output: Path) -> set[str]:
    return {path.parent.name for path in output.glob("*/result.json") if not path.parent.name.startswith(TEMPORARY)}


def pixels(output: Path) -> dict[str, str]:
    """sha256 of the decoded frames of each answer."""
    hashes = {}
    for name in sorted(sealed(output)):
        found = hashlib.sha256()
        for frame in read_frames(output / name / "video.mp4"):
            found.update(frame.tobytes())
        hashes[name] = found.hexdigest()
    return hashes


def test_one_rank_and_two_killed_and_continued_give_the_same_frames(given, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    process = begin([sys.executable], given, one)
    said, errors = process.communicate(timeout=280)
    assert process.returncode == 1, errors[-4000:]
    result = json.loads(said.splitlines()[-1])
    assert sorted(result["made"]) == sorted(str(one / name) for name in GOOD)
    assert [line.partition("requests.jsonl: ")[2].partition(":")[0] for line in result["failed"]] == [
        "line 2",
        "line 3",
    ]
    assert all(line in errors for line in result["failed"])
    expected = pixels(one)
    assert len(set(expected.values())) == len(GOOD)

    port = free_port()
    ranks = [
        begin([sys.executable], given, two, RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(2)
    ]
    wait_for_one(ranks[0], two)
    for process in ranks:
        process.kill()
    for process in ranks:
        process.communicate(timeout=60)
    before = {name: (two / name / "result.json").stat().st_mtime_ns for name in sealed(two)}
    process = begin([*TWO, str(free_port()), "--"], given, two)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1, errors[-4000:]
    assert pixels(two) == expected
    assert {name: (two / name / "result.json").stat().st_mtime_ns for name in before} == before
    assert not list(two.glob(f"{TEMPORARY}*"))

    numbers = tmp_path / "numbers"  # what evaluate reads of the very folders
    code = run_stagecoach("evaluate", one, "--truth", two, "--output", numbers)[1]
    assert code == 0
    measured = json.loads((numbers / "result.json").read_text())["metrics"]
    for name, value in (("psnr", 100), ("depth_abs_rel", 0), ("motion_error", 0)):
        assert (measured[name]["mean"], measured[name]["n"]) == (pytest.approx(value, abs=1e-4), len(GOOD))
    assert measured["seconds_per_sample"]["n"] > 0


def test_under_deepspeed_with_offloading_and_tiles_the_frames_are_the_same(given, tmp_path):
    """The VAE's tiles are larger than these pictures, and what computes where changes no number."""
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    process = begin(launcher, [*given, "--offload", "--vae-tiling"], tmp_path / "two")
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1, errors[-4000:]
    process = begin([sys.executable], given, tmp_path / "one")
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1, errors[-4000:]
    assert pixels(tmp_path / "two") == pixels(tmp_path / "one")
    said = json.loads((tmp_path / "two" / "still" / "result.json").read_text())
    assert said["settings"]["vae_tiling"] is True


def test_a_signal_ends_it_with_75_and_nothing_half_written(given, tmp_path):
    process = begin([sys.executable], given, tmp_path / "out")
    wait_for_one(process, tmp_path / "out")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors[-4000:]
    assert "stopped on request; what was answered is kept" in errors
    assert {path.name for path in (tmp_path / "out").iterdir()} == sealed(tmp_path / "out") != set(GOOD)


def test_what_is_not_there_is_said_before_torch_is_imported(given, tmp_path):
    for word, wrong, reason in (
        ("--requests", "none.jsonl", "none.jsonl: not readable (No such file or directory)"),
        ("--adapter", "none", "--adapter none: there is nothing"),
        ("--components", "none", "--components: none is not there"),
    ):
        words = list(given)
        words[words.index(word) + 1] = wrong
        code = (
            "import sys\nfrom stagecoach.launch.commands import app\nfrom stagecoach.trainer.cli import invoke\n"
            "try:\n    invoke(app, sys.argv[1:])\nexcept ValueError as error:\n    print(error)\n"
            "assert 'torch' not in sys.modules"
        )
        command = [sys.executable, "-c", code, "sample", *words, "--output", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-2000:]
        assert reason in done.stdout
        assert not (tmp_path / "out").exists()
