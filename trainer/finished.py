"""Whether what a finished stage was trained with is what its recipe says now."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from stagecoach.data.files import DamagedError
from stagecoach.models.weights.card import AdapterCard, read_card
from stagecoach.models.weights.opening import open_weights
from stagecoach.trainer.run_folder import adapter_directory
from stagecoach.trainer.stage_plan import StagePlan
from stagecoach.trainer.start_point import start_source

log = logging.getLogger(__name__)

OF_THE_RECIPE = ("family", "size", "seed", "precision", "frozen", "export_weights")
OF_THE_OPTIMIZER = ("betas", "eps", "weight_decay")
OF_THE_STAGE = (
    "steps",
    "global_batch",
    "learning_rate",
    "warmup_steps",
    "schedule",
    "final_lr_fraction",
    "gradient_clipping",
    "loss_weights",
)


def decisive_settings(plan: StagePlan, shards: str, started_from: str | None) -> dict[str, Any]:
    """What decides the result of a stage, by dotted names, as JSON values: neither how it is spread over devices nor
    what is logged and kept of it."""
    recipe = plan.recipe
    values = {name: getattr(recipe, name) for name in OF_THE_RECIPE}
    values |= {f"optimizer.{name}": getattr(recipe.optimizer, name) for name in OF_THE_OPTIMIZER}
    values["ema.decay"] = recipe.ema.decay if recipe.ema else None
    values |= {f"stages.{plan.index}.{name}": getattr(plan.stage, name) for name in OF_THE_STAGE}
    values |= dict(_flat("model", plan.config.model_dump(mode="json")))
    return json.loads(json.dumps(values | {"shards": shards, "started_from": started_from}))


def _flat(name: str, value: Any):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value


def differences(card: AdapterCard, settings: dict[str, Any]) -> list[str]:
    """``name was, this run has is`` for each setting that an adapter was not trained with. Adapters without settings
    say less."""
    was = card.settings
    if not was:
        was = {f"stages.{card.stage}.steps": card.steps, "export_weights": card.export_weights}
        was |= {"started_from": card.predecessor} | dict(_flat("model", card.config))
        settings = {name: value for name, value in settings.items() if name in was}
    return [
        f"{name} {was.get(name)}, this run has {settings.get(name)}"
        for name in sorted(was.keys() | settings.keys())
        if was.get(name) != settings.get(name)
    ]


def finished_adapter(plan: StagePlan, shards: str, init: Path | None, extend: bool) -> Path | None:
    """The intact adapter of a stage that was trained with what its recipe says now; None where there is none. Called by
    one rank. ``init``: the weights that the stage is to start from.

    Raises ``ValueError`` where it was trained with something else, by name, unless ``extend`` is set and the stage now
    has more steps, which it goes on for.
    """
    recipe, index = plan.recipe, plan.index
    directory = adapter_directory(recipe.run, index)
    try:
        card = read_card(directory)
    except DamagedError as error:
        if directory.exists():
            log.warning("adapter ignored: %s", error)
        return None
    source = start_source(plan, init)
    started_from = None
    if source is not None:
        there = init is not None or source.exists()
        started_from = open_weights(source).sha256 if there else card.predecessor
    found = differences(card, decisive_settings(plan, shards, started_from))
    if not found:
        return directory
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    what = f"{directory}: the finished stage {index} was trained with {'; '.join(found[:6])}{more}"
    if extend and plan.stage.steps > card.steps:
        log.warning(f"{what}; it goes on up to step {plan.stage.steps}")
        return None
    raise ValueError(
        f"{what}; take the old values back, choose another folder with --run, or train stage {index} again alone with "
        "--resume never, which moves the old one aside"
    )
