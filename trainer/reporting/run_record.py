"""``run.json``: what a run folder says of its starts and stages."""

import json
import re
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from stagecoach.data.reading import Count, parse_json, read_json

RUN_RECORD = "run.json"


class Start(TypedDict):
    """One start of a command."""

    time: str
    stage: Count
    step: Count
    host: str
    world_size: Count
    argv: list[str]
    versions: NotRequired[dict[str, str]]
    commit: NotRequired[str | None]


class Module(TypedDict):
    """A row of the freeze table."""

    pattern: str
    modules: Count
    parameters: Count
    lr_scale: NotRequired[float | None]
    start_fraction: NotRequired[float | None]


class Exit(TypedDict):
    metric: str
    limit: float


class MetricFacts(TypedDict):
    name: str
    unit: NotRequired[str]
    higher_is_better: NotRequired[bool | None]
    baseline: NotRequired[str | None]


class StageRecord(TypedDict, total=False):
    """What a stage says of itself."""

    name: str
    trainable: Count
    frozen: Count
    modules: list[Module]
    exits: list[Exit]
    metrics: list[MetricFacts]


class RunRecord(TypedDict, total=False):
    starts: list[Start]
    wandb: dict[str, str]


def read_run_record(run: Path) -> dict[str, Any]:
    """``run.json`` of a run folder, empty where there is none. Raises ``DamagedError`` where it is of another shape."""
    path = run / RUN_RECORD
    if not path.exists():
        return {}
    record = read_json(path, dict[str, Any])
    parse_json(json.dumps(record).encode(), RunRecord, str(path), extra="ignore")
    for name, value in record.items():
        if re.fullmatch(r"stage\d+", name):
            parse_json(json.dumps(value).encode(), StageRecord, f"{path}: {name}", extra="ignore")
    return record
