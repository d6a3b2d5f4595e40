"""Does a killed run lose or repeat a sample, or end with other numbers? Runs with SIGKILL at random moments.

    python benchmarks/kill_trials.py 200 [--seed 0] [--folder /tmp/kill-trials]

Each run trains the toy stage of the tests over one or two ranks, under ZeRO-1, 2 or 3, with and without an average,
saving in the step or behind it. It is killed three times, all ranks or one of two, about half of the times while a
checkpoint is being written, and started again each time, until it ends. Then its losses, its samples and all tensors of
its last checkpoint are compared with those of a run that nobody killed, which saved in the step. Ranks are forked from
a process that has imported everything, so that a start takes two seconds.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: F401  # before the forks
from safetensors.torch import load_file

from stagecoach.data.files import TEMPORARY
from stagecoach.trainer.cli import json_output, run_main
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.run import run_stages
from stagecoach.trainer.stage import StageLoop
from tests.distributed.cases import losses, toy_recipe
from tests.pair import become_rank, free_port
from tests.toy import write_toy_shards

STEPS, EVERY, KILLS = 24, 3, 3
PATIENCE = 60.0
"""Seconds that a start may take before it counts as one that stands still."""
KINDS = list(itertools.product((1, 2), (1, 2, 3), (False, True), (False, True)))
"""Ranks, ZeRO stage, with an average, saving behind the steps."""
FAULTS = (
    "lost_samples",
    "repeated_samples",
    "unequal_losses",
    "unequal_checkpoints",
    "folders_left",
    "runs_that_did_not_end",
)


def recipe_of(kind: tuple[int, int, bool, bool], shards: Path, run: Path) -> Recipe:
    _, zero, average, behind = kind
    return toy_recipe(
        str(shards),
        str(run),
        zero=zero,
        steps=STEPS,
        checkpoint_every=EVERY,
        micro_batch=4,
        ema={"decay": 0.9} if average else None,
        checkpoint={"asynchronous": behind},
    )


def rank_main(rank: int, ranks: int, port: int, recipe: Recipe) -> None:
    """One rank: train, and note the samples of each micro-step before it is taken."""
    run = Path(recipe.run)
    run.mkdir(parents=True, exist_ok=True)
    output = os.open(run / f"output_{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    become_rank(rank, ranks, port)
    taken = open(run / f"samples_{rank}.jsonl", "a")  # noqa: SIM115  # until the process ends
    original = StageLoop.micro_step
    taken.write("[-1, []]\n")

    def micro_step(loop: StageLoop, batch: dict[str, Any]) -> None:
        taken.write(json.dumps([loop.step, batch["key"]]) + "\n")
        taken.flush()
        original(loop, batch)

    StageLoop.micro_step = micro_step  # type: ignore[method-assign]
    run_stages(recipe, [1])


def start(recipe: Recipe, ranks: int) -> list[int]:
    """Fork the ranks; their process ids."""
    port, processes = free_port(), []
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                rank_main(rank, ranks, port, recipe)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        processes.append(process)
    return processes


def ended(process: int) -> int | None:
    """Exit status of a process that has ended, which is then forgotten."""
    found, status = os.waitpid(process, os.WNOHANG)
    return status if found else None


def finish(processes: list[int], bound: float) -> list[int]:
    """Exit status of each; those that do not end within ``bound`` seconds are killed."""
    end, status = time.monotonic() + bound, {}
    while len(status) < len(processes):
        for process in [one for one in processes if one not in status]:
            if (found := ended(process)) is not None:
                status[process] = found
        if time.monotonic() > end:
            for process in [one for one in processes if one not in status]:
                os.kill(process, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.002)
    return [status[process] for process in processes]


def being_written(run: Path) -> list[Path]:
    return list((run / "stage1" / "checkpoints").glob(f"{TEMPORARY}checkpoint_*"))


def kill_once(processes: list[int], run: Path, chance: random.Random, in_save: bool) -> bool | None:
    """Kill at a random moment; whether that was while a checkpoint was written, None where the run had ended before.

    In a save: some checkpoint from the one after next on, at a moment within the time that one takes.
    """
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    end, alive = time.monotonic() + PATIENCE, True
    saves, moment = chance.randrange(1, 4), None
    seen: set[Path] = set()
    while alive and time.monotonic() < end:
        alive = all(os.waitid(os.P_PID, one, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for one in processes)
        if moment is None and in_save:
            seen |= set(being_written(run))
            if len(seen) >= saves:
                moment = time.monotonic() + chance.uniform(0.0, 0.015)
        elif moment is None and metrics.exists() and metrics.stat().st_size != before:
            moment = time.monotonic() + chance.uniform(0.0, 0.5)
        if moment is not None and time.monotonic() >= moment:
            break
        time.sleep(0.0005)
    if not alive:
        finish(processes, 5.0)
        return None
    victims = processes if len(processes) == 1 or chance.random() < 0.5 else [chance.choice(processes)]
    for process in victims:
        os.kill(process, signal.SIGKILL)
    inside = bool(being_written(run))
    # A launcher ends the others.
    finish(processes, 0.3)
    return inside


def samples_of(run: Path, ranks: int) -> dict[int, list[str]]:
    """The samples of each step that counts: of those taken twice, the second time."""
    steps: dict[int, list[str]] = {}
    for rank in range(ranks):
        own: dict[int, list[str]] = {}
        last: int | None = None
        for line in (run / f"samples_{rank}.jsonl").read_text().splitlines():
            step, keys = json.loads(line)
            if step != last:
                own[step] = []
            own[step] += keys
            last = step
        for step in own.keys() - {-1}:
            steps.setdefault(step, []).extend(own[step])
    return {step: sorted(keys) for step, keys in steps.items()}


def outcome(run: Path, ranks: int) -> dict[str, Any]:
    folder = run / "stage1" / "checkpoints" / f"checkpoint_{STEPS}"
    files = {str(file.relative_to(folder)): load_file(file) for file in sorted(folder.rglob("*.safetensors"))}
    left = [p.name for p in (run / "stage1" / "checkpoints").iterdir() if not p.name.startswith("checkpoint_")]
    return {"losses": losses(run, 1), "samples": samples_of(run, ranks), "files": files, "left": left}


def same_tensors(one: dict[str, dict], other: dict[str, dict]) -> bool:
    return one.keys() == other.keys() and all(
        one[file].keys() == other[file].keys() and all(one[file][key].equal(other[file][key]) for key in one[file])
        for file in one
    )


def compare(found: dict[str, Any], expected: dict[str, Any]) -> Counter:
    samples = Counter(key for step, keys in found["samples"].items() for key in [(step, one) for one in keys])
    wanted = Counter(key for step, keys in expected["samples"].items() for key in [(step, one) for one in keys])
    return Counter(
        lost_samples=(wanted - samples).total(),
        repeated_samples=(samples - wanted).total(),
        unequal_losses=found["losses"] != expected["losses"],
        unequal_checkpoints=not same_tensors(found["files"], expected["files"]),
        folders_left=len(found["left"]),
    )


def trial(kind: tuple[int, int, bool, bool], shards: Path, run: Path, chance: random.Random, expected: dict) -> Counter:
    count: Counter = Counter(runs=1)
    recipe, ranks = recipe_of(kind, shards, run), kind[0]
    for number in range(KILLS + 1):
        processes = start(recipe, ranks)
        if number == KILLS:
            break
        in_save = chance.random() < 0.75  # some come too late for it
        inside = kill_once(processes, run, chance, in_save)
        if inside is None:
            count["ended_before_the_kill"] += 1
        else:
            count.update(kills=1, kills_inside_a_save=inside)
    status = finish(processes, PATIENCE)
    if any(status):
        count["runs_that_did_not_end"] += 1
        print((run / "output_0.txt").read_text()[-2000:], file=sys.stderr)
        return count
    return count + compare(outcome(run, ranks), expected)


def run_trials(options: Namespace) -> dict[str, Any]:
    chance, began = random.Random(options.seed), time.monotonic()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="kill-trials-"))
    write_toy_shards(folder / "shards", samples=STEPS * 8 + 5)
    expected: dict[tuple, dict] = {}
    total: Counter = Counter()
    for number in range(options.runs):
        kind = chance.choice(KINDS)
        alike = (*kind[:3], False)  # how a checkpoint is written changes nothing
        if alike not in expected:
            run = folder / f"whole{len(expected)}"
            if any(finish(start(recipe_of(alike, folder / "shards", run), kind[0]), PATIENCE)):
                raise RuntimeError(f"{alike}: the run that nobody kills fails:\n{(run / 'output_0.txt').read_text()}")
            expected[alike] = outcome(run, kind[0])
            # The watchers of killed ranks may still write down what they saw.
            shutil.rmtree(run, ignore_errors=True)
        run = folder / f"run{number}"
        found = trial(kind, folder / "shards", run, chance, expected[alike])
        total.update(found)
        bad = any(found[name] for name in FAULTS)
        if not bad:
            shutil.rmtree(run, ignore_errors=True)
        print(
            f"{number + 1}/{options.runs} {kind}: {dict(found)}{' BAD, kept' if bad else ''}",
            file=sys.stderr,
            flush=True,
        )
    shutil.rmtree(folder / "shards")
    return dict(total) | {name: total[name] for name in FAULTS} | {"seconds": round(time.monotonic() - began)}


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the runs lie (default: a temporary folder)")
    with json_output(True) as emit:
        result = run_trials(parser.parse_args())
        emit(result)
    return int(any(result[name] for name in FAULTS))


if __name__ == "__main__":
    run_main(main)
