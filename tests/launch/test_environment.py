"""One way to find rank and world size, whoever started the processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any, get_args, get_origin

import pytest
from pydantic import AfterValidator, BaseModel

from stagecoach.data.paths import expand_path
from stagecoach.launch.paths import MODEL_PATHS, WEIGHTS, _texts
from stagecoach.models import FAMILIES, get_family
from stagecoach.trainer import environment as environment_module
from stagecoach.trainer.environment import check_environment, resolve_environment
from stagecoach.trainer.recipe import Recipe
from tests.tiny_data import ROOT

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Resolve an environment that holds ``given`` and none of the launchers' other variables."""
    variables = {}

    def resolve(**given):
        variables.clear()
        variables.update(given)
        monkeypatch.setattr("os.environ", variables)
        resolve_environment()
        return [variables[name] for name in OURS]

    return resolve


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_what_a_launcher_has_set_stays(environment, launcher):
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29501"}
    own = {"CROSS_RANK": "1", "LOCAL_SIZE": "2"} if launcher == "deepspeed" else {"TORCHELASTIC_RUN_ID": "none"}
    assert environment(**given, **own) == ["3", "4", "1", "node0", "29501"]
    # Also inside an allocation, whose own variables describe the launcher's single task.
    assert environment(**given, **own, **SLURM, SLURM_STEP_ID="0") == ["3", "4", "1", "node0", "29501"]


def test_a_task_of_srun_takes_its_place_from_slurm(environment):
    assert environment(**SLURM, SLURM_STEP_ID="0", MASTER_ADDR="node0") == ["9", "16", "1", "node0", "29500"]
    assert environment(**SLURM, SLURM_STEP_ID="0", MASTER_ADDR="node0", MASTER_PORT="4")[-1] == "4"


def test_several_tasks_without_a_master_address_are_refused_with_the_line_to_add(environment):
    with pytest.raises(ValueError, match=r"MASTER_ADDR is not set.*scontrol show hostnames"):
        environment(**SLURM, SLURM_STEP_ID="0")


def test_a_batch_shell_is_no_task(environment):
    # sbatch and salloc set SLURM_PROCID in the shell of the first node as well.
    rank, size, local, address, port = environment(**SLURM | {"SLURM_PROCID": "0"})
    assert (rank, size, local, address) == ("0", "1", "0", "127.0.0.1")
    assert int(port) > 0


def test_a_plain_process_is_alone_and_takes_a_free_port(environment):
    first, second = environment(), environment()
    assert first[:4] == ["0", "1", "0", "127.0.0.1"]
    assert first[4] != second[4]


def test_what_keeps_ranks_from_meeting_is_one_sentence_before_torch_is_imported(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(environment_module, "RESOLVE_SECONDS", 0.0)
    with pytest.raises(ValueError, match=r"2 ranks started, expected 4 \(--expect-ranks\)"):
        check_environment(4)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(ValueError, match=f"port {port} of .* cannot be opened .*in use"):
            check_environment(2)
        monkeypatch.setenv("RANK", "1")
        check_environment(2)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # torchrun itself holds the port
        check_environment(2)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    check_environment(2)
    monkeypatch.setenv("MASTER_ADDR", "no-such-node.invalid")
    with pytest.raises(ValueError, match=r"MASTER_ADDR is no-such-node.invalid, which .* cannot resolve"):
        check_environment(2)


TINY = ("--profile", "tiny")
REFUSED = {
    "base": (["--data", ".", "--set", "model.base=nowhere"], "model.base: nowhere is not there, expected a file or"),
    "variable": (["--data", ".", "--set", "model.base=$NONE/x"], "the environment has no variable 'NONE'"),
    "weights": (["--data", ".", "--recipe", "weights.yaml"], "model.weights.guidance.mask: ~/gone is not there"),
    "metric": (
        ["--data", ".", *TINY, "--set", "validation.weights.lpips=gone"],
        "validation.weights.lpips: gone is not",
    ),
    "stage": (
        ["--data", ".", "--profile", "tiny", "--set", "stages.2.model.dino={base: gone}"],
        "stages.2.model.dino.base: gone is not there",
    ),
    "ds_config": (["--data", ".", "--recipe", "ds.yaml"], "ds_config: gone.json is not there, expected a DeepSpeed"),
    "ds_config set": (["--data", ".", *TINY, "--set", "ds_config=nowhere"], "ds_config: nowhere is not there"),
    "cache": (["--data", ".", *TINY, "--set", "stream.cache.directory=$HOME/file/c"], "is a file, expected a folder"),
    "data": (["--data", "nowhere"], "data: nowhere is not there"),
    "data of a stage": (["--data", ".", "--set", "stages.1.data=nowhere"], "stages.1.data: nowhere is not there"),
    "no data": ([], "data: no shards named"),
    "recipe": (["--data", ".", "--recipe", "none.yaml"], "none.yaml: cannot be read"),
    "init": (["--data", ".", "--init", "gone"], "--init gone: there is nothing, expected an adapter"),
    "resume": (["--data", ".", "--resume", "gone"], "--resume gone: there is no such folder"),
    "run": (["--data", ".", "--run", "file/run"], "is a file, expected a folder"),
    "ranks": (["--data", ".", "--expect-ranks", "2"], "1 rank started, expected 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_paths_are_looked_at_before_torch_is_imported(case, tmp_path):
    words, said = REFUSED[case]
    (tmp_path / "file").touch()
    (tmp_path / "ds.yaml").write_text("ds_config: gone.json\n")
    (tmp_path / "weights.yaml").write_text("model: {weights: {vae: $HOME/file, guidance: {mask: ~/gone}}}\n")
    code = (
        "import sys; from stagecoach.launch.commands import app; from stagecoach.trainer.cli import invoke, run_main\n"
        "try: run_main(lambda: invoke(app, ['train', *sys.argv[1:]]))\n"
        "finally: print('torch' in sys.modules)"
    )
    state = tmp_path / "state"
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(ROOT), "STAGECOACH_STATE": str(state), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "False\n"), done.stderr
    assert [line for line in done.stderr.splitlines() if said in line] == done.stderr.splitlines()
    assert said in (state / "error").read_text()  # the batch script does not repeat it


def test_every_path_of_a_recipe_is_one_that_is_looked_at_before_torch_is_imported():
    data = {f"{place}data{part}" for place in ("", "stages.*.") for part in ("", ".path")}
    assert set(path_keys(Recipe)) == {*data, "run", "ds_config", "stream.cache.directory", WEIGHTS[-1]}
    families = [get_family(name) for name in FAMILIES]
    assert {key for family in families for key in path_keys(family.config_type)} == set(MODEL_PATHS)
    for size in (size for family in families for size in family.sizes.values()):  # they name none themselves
        assert not [key for key, _ in _texts(size.model_dump()) if any(fnmatch(key, name) for name in MODEL_PATHS)]


def path_keys(annotation: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of the ``PathText`` in a model or a field's type; ``*`` for any name of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            below = f"{key}.{name}" if key else name
            for hint in (*field.metadata, field.annotation):
                yield from path_keys(hint, below)
    elif isinstance(annotation, AfterValidator):
        if annotation.func is expand_path:
            yield key
    else:
        inner = f"{key}.*" if get_origin(annotation) is dict else key
        for part in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)):
            yield from path_keys(part, inner)


def test_a_hostfile_that_is_not_there_is_refused_and_not_taken_for_one_host(tmp_path):
    # As `deepspeed` does where it finds no hostfile, with what it says; the name of the program is all that is ours.
    launcher = tmp_path / "deepspeed"
    launcher.write_text("import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[3:]]))\n")
    script = tmp_path / "script.py"
    script.write_text("from stagecoach.trainer.environment import check_environment; check_environment()\n")
    done = subprocess.run(
        [sys.executable, launcher, "--hostfile", "hosts", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"{tmp_path}/hosts: there is no such hostfile" in done.stderr
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    assert subprocess.run([*done.args], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 0


def test_a_rank_waits_for_the_first_one_no_longer_than_it_may(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        for name, value in {
            "RANK": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(environment_module, "MEET_SECONDS", 0.3)
        with pytest.raises(
            environment_module.NodeError, match=r"waited 0.3 s for rank 0 at 127.0.0.1:\d+, expected it there"
        ):
            environment_module.meet_first_rank()
        probe.listen()
        environment_module.meet_first_rank()
