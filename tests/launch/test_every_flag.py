"""Every flag of every command reaches what the command does: none is accepted and ignored."""

import shutil
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import pytest
import torch
import typer
from typer.main import get_command

from stagecoach.data.builders import BUILDERS, builder
from stagecoach.launch import commands, generating, shards
from stagecoach.launch.paths import RECIPES
from stagecoach.trainer.cli import invoke, single
from stagecoach.trainer.distributed import World

RECIPE = {
    "--family": "stable_diffusion_3",
    "--size": "tiny",
    "--profile": "tiny",
    "--recipe": "recipe.yaml",
    "--set": "seed=7",
}
READS = {"--data": "other", "--run": "elsewhere", "--allow-random-init": None}
TRAIN = {"--init": "adapter", "--resume": "never", "--dry-run": None, "--expect-ranks": "5"}
ASKED = {
    "--requests": "one.jsonl",
    "--prompt": "other",
    "--negative-prompt": "blurred",
    "--image": "photo.png",
    "--camera": "pan",
    "--video": "clip.mp4",
    "--song": "song.mp3",
    "--photo": "dancer.png",
    "--frames": "9",
    "--height": "64",
    "--width": "64",
    "--set": "fps=24",
    "--base": "wan",
    "--components": "parts",
    "--vae": "vae",
    "--text-encoder": "text",
    "--component": "dino=dino",
    "--steps": "3",
    "--guidance": "2.5",
    "--dtype": "bf16",
    "--offload": None,
    "--quantize": "int8",
    "--vae-tiling": None,
    "--expect-ranks": "5",
    "--family": "fantasy_world",
    "--size": "tiny",
    "--remake": None,
}
COMMANDS = {
    "sample": (
        ("--adapter", "a", "--output", "b", "--prompt", "x"),
        ASKED | {"--adapter": "c", "--output": "d", "--which": "average", "--predecessor": "e", "--seed": "3"},
    ),
    "compare": (
        ("--column", "a", "--output", "b", "--prompt", "x"),
        ASKED | {"--column": "c", "--output": "d", "--run": "runs", "--seeds": "0,1", "--title": "Which?"},
    ),
    "train": (("--data", "x"), RECIPE | READS | TRAIN | {"--stages": "2"}),
    "plan": ((), RECIPE | {"--gpus": "16", "--gpu": "H100", "--utilisation": "0.3", "--bandwidth": "50"}),
    "verify": (("--data", "x"), RECIPE | READS | {"--stage": "2", "--init": "adapter", "--gpus": "16", "--full": None}),
    "export": (
        ("--adapter", "a", "--output", "b"),
        {
            "--adapter": "c",
            "--output": "d",
            "--dtype": "fp32",
            "--to": "diffusers-lora",
            "--average": None,
            "--predecessor": "e",
            # of another --to, where FOR_OTHERS has them; here they are refused
            "--samples": "f",
            "--metrics": "g",
            "--push": "h/i",
            "--yes": None,
            "--component": "j",
            "--base": "k",
            "--vae": "l",
            "--frames": "9",
            "--int8": None,
        },
    ),
    "evaluate": (
        ("a", "--output", "b"),
        {
            "--output": "c",
            "--truth": "true",
            "--against": "other",
            "--estimates": "found",
            "--metrics": "psnr,ssim",
            "--seed": "3",
            "--force": None,
            "--device": "meta",
            "--lpips-kind": "vgg",
            **{f"--{name}": "w" for name in ("lpips", "inception", "i3d", "clip", "dino", "arcface", "detections")},
            "--grounding-dino": "w",
            "--pose-estimator": "w",
            "--person-detector": "w",
        },
    ),
    "shards check": (("x",), {"--jobs": "3"}),
    "shards repair": (("x",), {"--dry-run": None, "--schema-from": "y", "--jobs": "3"}),
    "shards index": (
        ("x", "--family", "fantasy_world"),
        {
            "--family": "stable_diffusion_3",
            "--schema-from": "y",
            "--size": "text_dim=8",
            "--skip-bad": None,
            "--replace": None,
            "--any-latent-scale": None,
            "--jobs": "3",
        },
    ),
    "shards inspect": (("x",), {}),
    "shards preview": (("x",), {"--output": "sheet.png", "--count": "3"}),
}
"""The words without which a command does not start, and a value other than the default of each flag."""


def flags(command: Any) -> dict[str, Any]:
    """Options by flag."""
    options = [p for p in command.params if p.param_type_name == "option" and not {"--json", "--help"} & {*p.opts}]
    return {option.opts[0]: option for option in options}


def named(name: str) -> Any:
    command = get_command(commands.app)
    for word in name.split():
        command = command.commands[word]
    return command


def plain(value):
    """What can be compared."""
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if callable(value) else str(value)


class Done(Exception):
    """The command has called what it is for."""


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What a command line comes to: the arguments of the functions that do the work."""
    found = []

    def record(ends=True, gives=None):
        def take(*values, **named):
            found.append(plain([values, named]))
            if ends:
                raise Done
            return gives

        return take

    for target in (
        "stagecoach.trainer.run.run_stages",
        "stagecoach.trainer.planning.planner.plan",
        "stagecoach.trainer.planning.preflight.preflight",
        "stagecoach.trainer.export.export_adapter",
        "stagecoach.trainer.export.export_onnx",
        "stagecoach.trainer.evaluating.evaluation.evaluate",
        "stagecoach.trainer.generating.sample.sample",
        "stagecoach.trainer.generating.compare.compare",
        "stagecoach.launch.shards.checking.check",
        "stagecoach.launch.shards.repairing.repair",
        "stagecoach.launch.shards.index_folder",
        "stagecoach.launch.shards.inspecting.inspect",
        "stagecoach.launch.shards.build_shards",
    ):
        monkeypatch.setattr(target, record())
    for target in ("stagecoach.launch.commands.check_environment", "stagecoach.launch.shards.schema_of"):
        monkeypatch.setattr(target, record(ends=False))
    monkeypatch.setattr(commands, "check_paths", lambda *_: None)
    monkeypatch.setattr(generating, "check_environment", record(ends=False))
    monkeypatch.setattr(generating, "_check_weights", lambda *_: None)
    monkeypatch.setattr(generating.OptionFlags, "check", lambda *_: None)
    monkeypatch.setattr("stagecoach.trainer.distributed.start", lambda: World(0, 1, 0, torch.device("cpu")))
    monkeypatch.setattr("stagecoach.trainer.generating.sample.locked_output", lambda *_: nullcontext())
    monkeypatch.setattr(commands, "log_to_run", lambda *_: None)
    monkeypatch.setattr(shards.inspecting, "contact_sheet", record(ends=False, gives=[[0]]))
    monkeypatch.setattr(shards, "atomic_file", record())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "stage1" / "adapter").mkdir(parents=True)
    (tmp_path / "runs" / "stage1" / "adapter" / "adapter.json").touch()
    shutil.copyfile(RECIPES / "fantasy_world" / "tiny.yaml", tmp_path / "recipe.yaml")

    def run(app, words):
        found.clear()
        try:
            invoke(app, words)
        except (Done, typer.TyperException, ValueError) as end:
            return [*found, "" if isinstance(end, Done) else str(end)]
        raise AssertionError(f"{words} ended without any work")

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_changes_what_is_done(calls, name):
    needed, values = COMMANDS[name]
    command = named(name)
    assert set(values) == set(flags(command)), f"a flag of {name} that this test does not know"
    base = calls(commands.app, [*name.split(), *needed])
    assert base[-1] == "", base
    for flag, value in values.items():
        words = [flag] if value is None else [flag, value]
        found = calls(commands.app, [*name.split(), *needed, *words])
        assert found != base, f"{name} {' '.join(words)} does what {name} does without"


FOR_OTHERS = {
    "hub-folder": (
        (),
        {"--samples": "f", "--metrics": "g", "--dtype": "fp16", "--average": None, "--predecessor": "e"},
    ),
    "onnx": (
        ("--component", "x"),
        {"--component": "y", "--base": "k", "--vae": "l", "--frames": "9", "--int8": None, "--predecessor": "e"},
    ),
}
"""Flags of ``export`` that count with another ``--to``."""


@pytest.mark.parametrize("to", FOR_OTHERS)
def test_each_flag_of_an_export_for_others_changes_what_is_written(calls, monkeypatch, to):
    written = []

    def write(*values, **named):
        written.append(plain([values, named]))
        raise Done

    monkeypatch.setattr("stagecoach.trainer.hub.write_hub_folder", write)
    needed, values = FOR_OTHERS[to]

    def run(*more):
        written.clear()
        found = calls(commands.app, ["export", "--adapter", "a", "--output", "b", "--to", to, *needed, *more])
        assert found[-1] == "", found
        return [*found, *written]

    base = run()
    for flag, value in values.items():
        assert run(*([flag] if value is None else [flag, value])) != base, f"{flag} with --to {to}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8"], "--int8 is of --to onnx, found --to adapter"),
        (["--push", "a/b", "--to", "onnx", "--component", "x"], "--push is of --to hub-folder, found --to onnx"),
        (["--to", "hub-folder", "--yes"], "--yes is given without --push"),
        (["--to", "onnx"], "--component is not given"),
        (["--to", "onnx", "--component", "x", "--dtype", "fp16"], "--dtype is not allowed with --to onnx"),
    ],
)
def test_a_flag_of_another_export_is_refused(calls, words, message):
    assert message in calls(commands.app, ["export", "--adapter", "a", "--output", "b", *words])[-1]


def test_the_table_holds_all_commands():
    app = get_command(commands.app)
    assert set(COMMANDS) | {"shards annotate", "shards build", "shards synthesize"} == {
        *(set(app.commands) - {"shards"}),
        *(f"shards {name}" for name in app.commands["shards"].commands),
    }


SPECIAL = {"--pose-canvas": "640x360", "--person": "1", "--sizes": "96x96", "--precomputed": "text", "--frames": "13"}


def other(name: str, option: Any) -> list[str]:
    """Words that give an option another value than its default."""
    kind = option.type_descriptor.annotation
    if option.is_flag:
        return [name]
    if name in SPECIAL:
        return [name, SPECIAL[name]]
    if choices := [choice for choice in get_args(kind) if isinstance(choice, str) and choice != option.default]:
        return [name, choices[0]]
    if kind is int:
        return [name, str((option.default or 0) + 4)]
    if kind is float:
        return [name, str((option.default or 1) / 2)]
    return [name, "another"]


@pytest.mark.parametrize("command", ["build", "synthesize"])
@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_each_flag_of_a_family_changes_what_is_built(calls, monkeypatch, family, command):
    made = []
    kind = type(builder(family))
    monkeypatch.setattr(kind, "make_job", lambda self, *values: made.append(plain(values)))
    monkeypatch.setattr(kind, "write_raw", lambda self, *values: made.append(plain(values)))
    monkeypatch.setattr(kind, "write_encoders", lambda self, *values: made.append(plain(values)))
    app = single(shards.FAMILY_COMMANDS[command](family), "")
    options = flags(get_command(app))
    if command == "synthesize":
        monkeypatch.setattr(shards, "Outcome", lambda *_: (_ for _ in ()).throw(Done))
    needed = ["--family", family]
    for name, option in options.items():
        if option.required or name in ("--clip", "--dino"):
            needed += other(name, option)

    def run(words):
        made.clear()
        return [*calls(app, words), *made]

    base = run(needed)
    assert made, base
    for name, option in options.items():
        if name != "--family":
            changed = [name, "second"] if name in needed else other(name, option)
            assert run([*needed, *changed]) != base, f"{command} {' '.join(changed)} of {family}"
