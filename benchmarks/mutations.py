"""Is a file that was damaged ever taken for a good one? A real resume from each of N mutated run folders.

    python benchmarks/mutations.py 500 [--seed 0] [--folder /tmp/mutations]

A toy run whose second stage was stopped after 4 of 6 steps lies in a folder with its shards. Each trial copies it,
changes one file, and goes on with the command that a person would give again, in a forked process of its own. What may
come of it: one sentence that names the file, a warning that names it and the result of the untouched run, or that
result alone where the file decides nothing. Faults: a traceback, a refusal without a name, another result that
nothing announces, and a process that does not end. A folder whose manifest was written again after the change is not
damaged but edited, which a manifest cannot show: there another result counts as ``another's``, the rest as above.
"""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from stagecoach.data.files import MANIFEST, seal_directory
from stagecoach.models import FAMILIES
from stagecoach.trainer.cli import json_output, run_main
from stagecoach.trainer.recipe import load_recipe
from stagecoach.trainer.reporting.logs import log_to_run
from stagecoach.trainer.run import run_stages
from tests.distributed.cases import toy_recipe
from tests.toy import write_toy_shards

PATIENCE = 60.0
"""Seconds after which a process counts as one that does not end."""
OLDER, NEWEST = "older checkpoint", "run/stage2/checkpoints/checkpoint_4"
GROUPS = {
    "checkpoint": f"{NEWEST}/**/*",
    OLDER: "run/stage2/checkpoints/checkpoint_2/**/*",
    "adapter": "run/stage1/adapter/**/*",
    "manifest": "run/stage*/**/manifest.json",
    "shard": "shards/*/*.tar",
    "index": "shards/*/*.idx",
    "shards' manifest": "shards/*/manifest.json",
    "run.json": "run/run.json",
    "metrics": "run/metrics.jsonl",
    "recipe": "run/recipe.yaml",
}
VERDICTS = ("refused", "passed over", "no effect", "another's", "traceback", "nameless", "used", "hang")
FAULTS = VERDICTS[4:]
JUNK: tuple[Any, ...] = (None, True, -1, 3, 2**70, 1e999, 0.5, "", "../x", "é" * 9, [], [[]], {}, {"a": 3})


def flip(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes() or b"x")
    data[at := chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return f"a bit of byte {at} turned"


def cut(path: Path, chance: random.Random) -> str:
    size = chance.randrange(max(1, path.stat().st_size))
    os.truncate(path, size)
    return f"cut to {size} bytes"


def extend(path: Path, chance: random.Random) -> str:
    with open(path, "ab") as handle:
        handle.write(chance.randbytes(chance.randrange(1, 2000)))
    return "bytes appended"


def blank(path: Path, chance: random.Random) -> str:
    data = path.read_bytes()
    first = chance.randrange(len(data) or 1)
    path.write_bytes(data[:first] + bytes(len(data[first : first + 512])) + data[first + 512 :])
    return f"zeros from byte {first}"


def replace(path: Path, chance: random.Random) -> str:
    data = path.read_bytes()
    path.unlink()
    kind = chance.choice(["gone", "pipe", "folder", "link", "ring", "noise", "deep"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        outside = next(one for one in path.parents if one.name.startswith("trial_")) / f"elsewhere-{path.name}"
        outside.write_bytes(data)
        path.symlink_to(outside)
    elif kind == "ring":
        path.symlink_to(path.name)
    elif kind != "gone":
        path.write_bytes(b"[" * 50_000 if kind == "deep" else chance.randbytes(300))
    return f"replaced: {kind}"


def other_value(path: Path, chance: random.Random) -> str:
    """Another value, a key less or one more somewhere in a JSON file."""
    value = json.loads(path.read_bytes())
    holders: list[Any] = [value]
    for holder in holders:
        holders += [
            one
            for one in (holder.values() if isinstance(holder, dict) else holder)
            if one and type(one) in (dict, list)
        ]
    holder = chance.choice([one for one in holders if one])
    key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    junk, kind = chance.choice(JUNK), chance.choice(["changed", "changed", "removed", "whole"])
    if kind == "removed":
        del holder[key]
    elif kind == "changed":
        holder[key] = junk
    path.write_text(json.dumps(junk if kind == "whole" else value))
    return f"JSON: {kind} {key!r} {junk!r:.30}"


def mutate(root: Path, group: str, chance: random.Random) -> tuple[Path, str, bool]:
    """Change one file of a group. The file, in which way, and whether its folder was sealed again."""
    path = chance.choice(sorted(one for one in root.glob(GROUPS[group]) if one.is_file()))
    if group == OLDER:  # which is read only where the newest is damaged
        (root / NEWEST / "training_state.json").unlink()
    kinds: list[Callable[[Path, random.Random], str]] = [flip, cut, extend, blank, replace]
    if path.suffix == ".json" or path.suffix == ".idx":
        kinds += [other_value] * 5
    what = chance.choice(kinds)(path, chance)
    folder = next((one for one in path.parents if one.name in ("adapter", "checkpoint_2", "checkpoint_4")), None)
    sealed = (
        bool(folder) and path.name != MANIFEST and path.is_file() and not path.is_symlink() and chance.random() < 0.4
    )
    if folder and sealed:
        seal_directory(folder)
    return path, what, sealed


def resume(root: Path, stages: list[int]) -> tuple[int | None, str]:
    """Go on in a forked process; its exit code, None where it had to be killed, and what it said."""
    said = root / "said.txt"
    process = os.fork()
    if process == 0:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115  # not pytest's
        code = 1
        try:
            run_main(lambda: _train(root, stages))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + PATIENCE
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None, said.read_text(errors="replace")
        time.sleep(0.01)


def _train(root: Path, stages: list[int]) -> int:
    torch.set_num_threads(1)
    FAMILIES["toy"] = "tests.toy:ToyFamily"
    recipe = load_recipe(recipe=root / "run" / "recipe.yaml", data=root / "shards", run=root / "run")
    log_to_run(recipe.run)
    run_stages(recipe, stages)
    return 0


def result_of(root: Path) -> str | None:
    """The identity of the last adapter and the losses of its stage."""
    try:
        card = json.loads((root / "run" / "stage2" / "adapter" / "adapter.json").read_text())
    except OSError:
        return None
    return card["sha256"]


def judge(root: Path, path: Path, sealed: bool, code: int | None, said: str, expected: str, group: str) -> str:
    names = {path.name, path.name.removesuffix(".idx"), path.parent.name} - {"run", "shards", "train", "val"}
    if path.name == MANIFEST or path.parent.name in ("optimizer",):
        names.add(path.parent.parent.name)
    if group == "recipe":
        names.add("in this recipe")  # one that was cut where it is still a recipe, of fewer stages
    if group == OLDER:
        names = {"checkpoint_2"}  # what is said of the newest says nothing of it
    named = any(name in said for name in names)
    warned = any("warning: " in line and any(name in line for name in names) for line in said.splitlines())
    if code is None:
        return "hang"
    if "Traceback" in said or code not in (0, 1):
        return "traceback"
    if code == 1:
        return "refused" if named and "error: " in said else "nameless"
    if result_of(root) == expected:
        return "passed over" if warned else "no effect"
    if sealed or group == "recipe":  # another valid recipe is one
        return "another's"
    return "passed over" if warned or (group != OLDER and "warning: " in said and named) else "used"


def prepare(root: Path) -> str:
    """The run that is stopped in its second stage; what the untouched one ends with."""
    write_toy_shards(root / "shards")
    recipe = toy_recipe(
        str(root / "shards"),
        str(root / "run"),
        zero=1,
        steps=6,
        checkpoint_every=2,
        gradient_check_steps=1,
        stream={"bad_samples": 0.2},
    )
    (root / "run").mkdir()
    (root / "run" / "recipe.yaml").write_text(recipe.dump())
    code, said = resume(root, [1, 2])
    expected = result_of(root)
    if code != 0 or expected is None:
        raise RuntimeError(f"the run that nobody touched has failed: {said}")
    shutil.rmtree(root / "run" / "stage2" / "adapter")
    shutil.rmtree(root / "run" / "stage2" / "checkpoints" / "checkpoint_6")
    (root / "said.txt").unlink()
    return expected


def run_trials(options: Namespace) -> dict[str, Any]:
    folder = Path(options.folder or tempfile.mkdtemp(prefix="mutations-"))
    base = folder / "base"
    base.mkdir(parents=True)
    expected = prepare(base)
    table: dict[str, Counter[str]] = {group: Counter() for group in GROUPS}
    faults, started = [], time.monotonic()
    for number in range(options.runs):
        group = list(GROUPS)[number % len(GROUPS)]
        chance = random.Random(f"{options.seed}-{number}")
        trial = folder / f"trial_{number}"
        shutil.copytree(base, trial)
        path, what, sealed = mutate(trial, group, chance)
        code, said = resume(trial, [1, 2])
        verdict = judge(trial, path, sealed, code, said, expected, group)
        table[group][verdict] += 1
        if verdict in FAULTS:
            faults.append(
                f"{number}: {path.relative_to(trial)}: {what}{', sealed' * sealed}: {verdict}: {said[-1500:]}"
            )
            print(faults[-1], file=sys.stderr, flush=True)
        # The watcher of a run may still be leaving when the run has ended.
        shutil.rmtree(trial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    total = sum(table.values(), Counter())
    return {
        "runs": options.runs,
        "seconds": round(time.monotonic() - started, 1),
        **{verdict: total[verdict] for verdict in VERDICTS},
        "groups": {group: dict(counts) for group, counts in table.items()},
        "faults": faults,
    }


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where runs are made; a new temporary folder where not given")
    parser.add_argument("--json", action="store_true", help="write JSON and nothing else to the standard output")
    options = parser.parse_args()
    with json_output(options.json) as emit:
        result = run_trials(options)
        emit(result)
    if not options.json:
        print(f"{'':<18}" + "".join(f"{verdict:>12}" for verdict in VERDICTS))
        for group, counts in result["groups"].items():
            print(f"{group:<18}" + "".join(f"{counts.get(verdict, 0):>12}" for verdict in VERDICTS))
        print(f"{result['runs']} runs in {result['seconds']} s, {len(result['faults'])} faults")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    run_main(main)
