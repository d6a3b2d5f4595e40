"""A Slurm cluster of two nodes on this machine, in namespaces of its own: no port, process or daemon is shared."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "unshare", "nsenter", "ip")
# cred_expire is also how long a requeued job waits; the default is two minutes.
CONF = """ClusterName=t
SlurmctldHost=localhost
AuthInfo=socket={dir}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={dir}/ctld.pid
SlurmdPidFile={dir}/d%n.pid
SlurmdSpoolDir={dir}/spool%n
StateSaveLocation={dir}/state
SlurmUser=root
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldLogFile={dir}/ctld.log
SlurmdLogFile={dir}/d%n.log
SchedulerParameters=sched_interval=2
MinJobAge=3600
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=localhost Port=[17001-17002] CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=YES State=UP
"""
START = """set -e
ip link set lo up
# Names are resolved where there is an address other than the loopback's.
ip link add sc0 type bridge
ip address add 198.18.251.1/24 dev sc0
ip link set sc0 up
mount --bind {dir}/hosts /etc/hosts
munged --force --key-file={dir}/munge.key --socket={dir}/munge.socket --pid-file={dir}/munge.pid \
    --log-file={dir}/munge.log --seed-file={dir}/munge.seed
export SLURM_CONF={dir}/slurm.conf
slurmctld -c
slurmd -N n1
slurmd -N n2
touch {dir}/started
# The shell stays: as process 1 it takes in what the daemons leave behind.
sleep infinity &
wait
"""


def missing() -> list[str]:
    return [name for name in NEEDED if shutil.which(name) is None]


class Cluster:
    """Daemons that end with the object, and commands to them. A batch script starts in ``work``."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work
        folder.mkdir(mode=0o700)
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(CONF.format(dir=folder))
        names = f"127.0.0.1 localhost\n198.18.251.1 n1 n2 {os.uname().nodename}\n"
        (folder / "hosts").write_text(names)
        subprocess.run(["mungekey", "--create", f"--keyfile={folder}/munge.key"], check=True)
        space = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(folder / "start.log", "w") as log:
            command = [*space, "bash", "-c", START.format(dir=folder)]
            self.holder = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            self._enter()
        except BaseException:
            self.close()
            raise

    def _enter(self) -> None:
        self.until((self.folder / "started").exists, "the daemons to start", 30)
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        self.space = ["nsenter", "--net", "--mount", "--pid", "--target", children[0]]
        self.until(lambda: self.ask("sinfo", "-h", "-o", "%T %D") == "idle 2", "both nodes to be idle", 60)

    def ask(self, *words: object, **environment: str) -> str:
        """The output of a command inside the cluster."""
        given = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        given |= {"SLURM_CONF": str(self.folder / "slurm.conf"), **environment}
        done = subprocess.run(
            [*self.space, *map(str, words)], cwd=self.work, env=given, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{words}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def submit(self, *words: object, **environment: str) -> str:
        return self.ask("sbatch", "--parsable", *words, **environment)

    def facts(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        words = self.ask("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, seconds: float = 150) -> dict[str, str]:
        """Facts of a job that has ended for good."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.facts(job)["JobState"] in over, f"job {job} to end", seconds)
        return self.facts(job)

    def until(self, true: Callable[[], object], what: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end or self.holder.poll() is not None:
                logs = [*self.folder.glob("*.log"), *self.work.glob("*.log")]
                tails = "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in logs)
                raise AssertionError(f"waited {seconds} s for {what}\n{tails}")
            time.sleep(0.2)

    def close(self) -> None:
        self.holder.send_signal(signal.SIGKILL)
        self.holder.wait()
