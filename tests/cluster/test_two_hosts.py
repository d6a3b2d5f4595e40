"""`deepspeed --hostfile` over two hosts, which are network namespaces of this machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stagecoach.models.weights.card import read_card
from tests.tiny_data import ROOT, make_shards

SCRIPT = Path(__file__).with_name("run_two_hosts.sh")
MISSING = [name for name in ("sshd", "pdsh", "ip", "ssh-keygen") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        bool(MISSING), reason=f"{', '.join(MISSING)} not found: apt-get install openssh-server pdsh iproute2"
    ),
]


def leftovers() -> set[str]:
    """Network namespaces and interfaces of this machine."""
    said = [
        subprocess.run(["ip", *what], capture_output=True, text=True, check=True).stdout.splitlines()
        for what in (("netns", "list"), ("-brief", "link"))
    ]
    return {line.split()[0] for lines in said for line in lines}


def on_two_hosts(work: Path, *command: object) -> subprocess.CompletedProcess:
    before = leftovers()
    done = subprocess.run([str(SCRIPT), str(work), *map(str, command)], capture_output=True, text=True, timeout=800)
    assert leftovers() <= before
    return done


def test_stage_one_trains_on_two_hosts_and_leaves_an_adapter(tmp_path):
    shards = make_shards(tmp_path)
    done = on_two_hosts(
        tmp_path,
        ROOT / "launch" / "stage1.py",
        "--profile",
        "tiny",
        "--data",
        shards,
        "--run",
        tmp_path / "run",
        "--set",
        "stages.1.steps=2",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    hosts = [line.split()[0] for line in (tmp_path / "hostfile").read_text().splitlines()]
    for host in hosts:
        said = [line for line in done.stdout.splitlines() if line.startswith(f"{host}:")]
        assert any("exits successfully" in line for line in said), f"{host} took no part"
    assert "= 2 ranks x" in (tmp_path / "run" / "train.log").read_text()
    card = read_card(tmp_path / "run" / "stage1" / "adapter")
    assert (card.family, card.stage, card.steps) == ("fantasy_world", 1, 2)


def test_a_mistake_comes_back_as_one_sentence_and_an_exit_code_and_nothing_stays_behind(tmp_path):
    done = on_two_hosts(
        tmp_path,
        ROOT / "launch" / "stage1.py",
        "--profile",
        "tiny",
        "--data",
        tmp_path / "nowhere",
        "--run",
        tmp_path / "run",
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "error:" in line and "nowhere" in line]
    assert len(said) == 1, done.stderr[-4000:]
    assert not (tmp_path / "run").exists()
