"""The installed package: one name next to a project that has packages named as our folders, and no extras needed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from stagecoach import __version__
from tests.tiny_dance import make_tiny_dance
from tests.tiny_data import ROOT, make_shards

PACKED = ("data", "models", "trainer", "launch", "ds_configs", "stagecoach", "setup.py", "pyproject.toml", "README.md")
EXTRAS = ("av", "sentencepiece", "librosa", "h5py", "onnx", "onnxruntime", "aiohttp", "s3fs", "gcsfs", "webdataset")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": ""} | more


def run(*command: object, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def without_extras(command: str, cwd: Path, before: str = "pass") -> str:
    """Run ``stagecoach COMMAND`` from this tree in a process that has no package of an extra."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); sys.path.insert(0, {str(ROOT)!r}); "
        f"sys.argv = ['stagecoach', *{command.split()!r}]; {before}; "
        f"from stagecoach.launch.commands import main; main()"
    )
    return run(sys.executable, "-c", code, cwd=cwd)


def test_the_version_is_printed(tmp_path):
    assert run(sys.executable, "-m", "stagecoach", "--version", cwd=ROOT).strip() == __version__


def test_families_are_imported_and_planned_without_the_packages_of_the_extras(tmp_path):
    every = "from stagecoach.models import FAMILIES, get_family; [get_family(name) for name in FAMILIES]"
    found = json.loads(without_extras("plan --family dance_with_music --profile tiny --json", tmp_path, every))
    assert found["family"] == "dance_with_music"


@pytest.mark.slow
def test_dance_with_music_trains_and_shows_pictures_without_the_packages_of_the_extras(tmp_path):
    shards = make_tiny_dance(tmp_path / "made", 8).shards
    steps = " ".join(f"--set stages.1.{name}=2" for name in ("steps", "validate_every", "preview_every"))
    command = f"train --family dance_with_music --profile tiny --stages 1 --data {shards} --run {tmp_path}/run {steps}"
    without_extras(command, tmp_path)
    assert (tmp_path / "run/stage1/adapter/adapter.json").exists()
    assert list((tmp_path / "run/previews").rglob("*.png"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installed_package_adds_one_name_and_works_next_to_packages_named_as_its_folders(tmp_path):
    source, own = tmp_path / "source", tmp_path / "own"
    source.mkdir()
    for name in PACKED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
            ROOT / name, source / name, **({"symlinks": True} if (ROOT / name).is_dir() else {})
        )
    shutil.copy(ROOT / "LICENSE", source)
    stale = source / "build/lib/stagecoach"
    stale.mkdir(parents=True)
    (stale / "gone.py").write_text("left by an earlier build")
    # Its own site-packages before those of the running environment, whose pip and dependencies it uses.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip())
    (site / "running.pth").write_text(sysconfig.get_paths()["purelib"])
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", source, cwd=tmp_path)

    added = {path.name for path in site.iterdir()} - {"running.pth"}
    assert added == {"stagecoach", f"stagecoach-{__version__}.dist-info"}
    assert not (site / "stagecoach/gone.py").exists()
    packed = {str(path.relative_to(site / "stagecoach")) for path in (site / "stagecoach").rglob("*")}
    data_files = [*(ROOT / "launch/recipes").rglob("*.yaml"), *(ROOT / "ds_configs").glob("*.json")]
    assert {str(path.relative_to(ROOT)) for path in data_files} <= packed

    for package in ("data", "models", "trainer"):
        (own / package).mkdir(parents=True)
        (own / package / "__init__.py").write_text("raise ImportError('the package of another project')")
    console, there = site.parents[2] / "bin/stagecoach", {"PYTHONPATH": str(own)}
    planned = json.loads(run(console, "plan", "--family", "fantasy_world", "--json", cwd=own, **there))
    assert set(planned["stages"]) == {"1", "2"}
    shards = make_shards(tmp_path / "tiny")
    words = ["--family", "fantasy_world", "--profile", "tiny", "--stages", "1", "--set", "stages.1.steps=2"]
    trained = run(console, "train", *words, "--data", shards, "--run", "run", "--json", cwd=own, **there)
    (adapter,) = json.loads(trained)["adapters"]
    assert json.loads((own / adapter / "adapter.json").read_text())["version"] == __version__
    assert len((own / "run/metrics.jsonl").read_text().splitlines()) >= 2
    wrong = subprocess.run([console, "plan", "--set", "sed=1"], cwd=own, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1), "a mistake is one sentence, installed as well"
