"""The least that any limit leaves is what can be had: of the machine, and of each control group above the process."""

import psutil
import pytest

from stagecoach.trainer.checkpointing import host_memory
from stagecoach.trainer.checkpointing.host_memory import available_bytes, check_memory


def group(root, path, names, limit, usage, reclaimable=0):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, usage), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {reclaimable}\ntotal_inactive_file {reclaimable}\n")


def of_process(root, lines):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)


NEW, OLD = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.mark.parametrize(
    ("outer", "inner", "left"),
    [(("max", 0), (1000, 600), 400), ((900, 650), (1000, 600), 250), (("max", 0), (1000, 1000, 300), 300)],
)
def test_the_least_of_the_groups_with_what_can_be_taken_back(tmp_path, outer, inner, left):
    of_process(tmp_path, "0::/job/step\n")
    group(tmp_path, "sys/fs/cgroup/job", NEW, *outer)
    group(tmp_path, "sys/fs/cgroup/job/step", NEW, *inner)
    assert available_bytes(tmp_path) == left


def test_the_groups_of_older_systems(tmp_path):
    of_process(tmp_path, "9:name=systemd:/\n4:cpu,memory:/slurm/job\n0::/\n")
    group(tmp_path, "sys/fs/cgroup/memory", OLD, 2**63 - 4096, 10**9)
    group(tmp_path, "sys/fs/cgroup/memory/slurm/job", OLD, 5000, 1000)
    assert available_bytes(tmp_path) == 4000


def test_without_limits_it_is_what_the_machine_has(tmp_path):
    of_process(tmp_path, "0::/\n")
    group(tmp_path, "sys/fs/cgroup", NEW, "max", 0)
    assert 0.5 < available_bytes(tmp_path) / psutil.virtual_memory().available < 2


def test_what_cannot_be_had_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 1000)
    check_memory(1000, "node7")
    with pytest.raises(ValueError, match=r"needs 1,001 bytes of memory on node7 .* 1,000 can be had there; set it to"):
        check_memory(1001, "node7")
