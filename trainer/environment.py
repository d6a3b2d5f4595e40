"""Where this process stands among the ranks, and what can be known to be wrong with that before torch is imported.

One way for ``deepspeed``, ``torchrun``, ``srun`` and none of them. Imports nothing heavy.
"""

import errno
import os
import re
import socket
import time
from pathlib import Path

RESOLVE_SECONDS = 20.0
"""How long a master's name may be unknown: name services of large clusters lag behind."""


MEET_SECONDS = 600.0
"""How long the first rank may take to where the ranks meet: imports from a shared file system take minutes. Behind a
launcher that leaves the other nodes alone when one has ended they would wait for the process group's half hour."""


class NodeError(ValueError):
    """Something is wrong on this node, and maybe on no other: the first rank of each says so."""


def resolve_environment() -> None:
    """Fill RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from Slurm's variables, or for a single process.

    What ``deepspeed`` and ``torchrun`` have set stays. Raises ``ValueError`` where several Slurm tasks have no common
    master address.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        env.setdefault("LOCAL_RANK", "0")
        return
    # SLURM_PROCID is also set inside a plain `sbatch` shell or `salloc`; only job steps (srun) have SLURM_STEP_ID.
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_NTASKS"]
        env["LOCAL_RANK"] = env["SLURM_LOCALID"]
        if int(env["WORLD_SIZE"]) > 1 and "MASTER_ADDR" not in env:
            raise ValueError(
                f"srun started {env['WORLD_SIZE']} tasks but MASTER_ADDR is not set, expected the first node's name; "
                "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n1) in the batch script"
            )
    env.setdefault("RANK", "0")
    env.setdefault("WORLD_SIZE", "1")
    env.setdefault("LOCAL_RANK", "0")
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in env:
        env["MASTER_PORT"] = str(29500 if int(env["WORLD_SIZE"]) > 1 else _free_port())


def check_environment(expect_ranks: int | None = None) -> None:
    """Resolve the environment and raise ``ValueError`` where the ranks cannot meet: fewer than ``expect_ranks``, a
    launcher that was given a hostfile that is not there, a master without an address, a port that is in use."""
    hostfile = _missing_hostfile()
    if hostfile is not None:
        raise ValueError(
            f"{hostfile}: there is no such hostfile, and deepspeed started on this host alone; expected the path of a "
            "file like hostfile.example"
        )
    resolve_environment()
    env = os.environ
    size = int(env["WORLD_SIZE"])
    if expect_ranks is not None and size < expect_ranks:
        raise ValueError(
            f"{size} rank{'s' * (size != 1)} started, expected {expect_ranks} (--expect-ranks); look at the hostfile "
            "or the launcher's numbers of nodes and processes"
        )
    if size == 1:
        return
    address, port = env["MASTER_ADDR"], int(env.get("MASTER_PORT", 29500))
    _resolve(address)
    # Under torchrun the agent holds the port already.
    if env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        _check_port(port)


def first_rank_answers(seconds: float) -> bool:
    """Whether the first rank, or the agent that speaks for it, opens the port where the ranks meet within that time.
    The first rank itself is not asked."""
    env, end = os.environ, time.monotonic() + seconds
    if env["RANK"] == "0":
        return True
    while True:
        try:
            socket.create_connection((env["MASTER_ADDR"], int(env.get("MASTER_PORT", 29500))), timeout=5.0).close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.2)


def meet_first_rank() -> None:
    """Wait for the first rank. Raises ``NodeError`` where it does not come within ``MEET_SECONDS``."""
    if not first_rank_answers(MEET_SECONDS):
        env = os.environ
        raise NodeError(
            f"{socket.gethostname()} waited {MEET_SECONDS:g} s for rank 0 at {env['MASTER_ADDR']}:"
            f"{env.get('MASTER_PORT', 29500)}, expected it there; look at what rank 0 said, and at the network between "
            "the nodes"
        )


def _resolve(address: str) -> None:
    end = time.monotonic() + RESOLVE_SECONDS
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except OSError as error:
            # Only "try again" may change.
            if getattr(error, "errno", None) != socket.EAI_AGAIN or time.monotonic() > end:
                raise NodeError(
                    f"MASTER_ADDR is {address}, which {socket.gethostname()} cannot resolve ({error.strerror}); "
                    "expected the first node's name or address as all nodes know it"
                ) from error
            time.sleep(1.0)


def _check_port(port: int) -> None:
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PyTorch's store does
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                return  # no IPv6 here, or something that the store itself will tell
            raise ValueError(
                f"port {port} of {socket.gethostname()}, where the ranks meet, cannot be opened ({error.strerror}), "
                "expected a free one; end what uses it, or choose another by MASTER_PORT or the launcher's "
                "--master_port"
            ) from error


def _missing_hostfile() -> Path | None:
    """The hostfile that a ``deepspeed`` above this process was told and that is not there. It says so in a warning and
    goes on with one host."""
    process = os.getppid()
    for _ in range(3):
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
            folder = Path(os.readlink(f"/proc/{process}/cwd"))
        except OSError:
            return None
        if any(Path(word).name in ("deepspeed", "ds") for word in words[:2]):
            for word, following in zip(words, [*words[1:], ""], strict=True):
                name, _, value = word.partition("=")
                if name in ("-H", "--hostfile"):
                    path = folder / (value or following)
                    return None if path.is_file() else path
        process = int(parent[1]) if parent else 0
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
