"""The commands of ``stagecoach`` as functions: what they found, and their exit codes."""

from typing import Any

from stagecoach.launch import shards
from stagecoach.launch.commands import app
from stagecoach.trainer.cli import invoke


def run_shards(*words: object) -> tuple[Any, int]:
    outcome = invoke(shards.app, [str(word) for word in words])
    return outcome.result, outcome.code


def run_stagecoach(*words: object) -> tuple[Any, int]:
    outcome = invoke(app, [str(word) for word in words], "stagecoach")
    return outcome.result, outcome.code
