"""What a page compares: columns of weights. Imports nothing heavy."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stagecoach.data.weight_files import AVERAGE, CARD, STATE

BASE = "base"
AVERAGED = ":average"


@dataclass(frozen=True)
class Column:
    """``weights``: a path, or ``base``."""

    name: str
    weights: str
    which: Literal["raw", "ema"] = "raw"

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"[^0-9A-Za-z._-]+", "_", self.name).strip("._") or "column"


def parse_column(text: str) -> Column:
    """``[NAME=]WEIGHTS[:average]``; the name is the weights' where none is given. Raises ``ValueError``."""
    name, equals, weights = text.partition("=")
    if not equals:
        name, weights = text, text
    which: Literal["raw", "ema"] = "ema" if weights.endswith(AVERAGED) else "raw"
    weights = weights.removesuffix(AVERAGED)
    if not name.strip() or not weights:
        raise ValueError(f"--column {text}: expected [NAME=]WEIGHTS[:average], the weights a path or base")
    if weights == BASE and which == "ema":
        raise ValueError(f"--column {text}: the base has no average, expected base or the path of a checkpoint")
    return Column(name.strip(), weights, which)


def columns_of_run(run: Path) -> list[Column]:
    """The base, each finished stage, and of the last stage the newest checkpoint: its average where it has one, itself
    where the stage is not finished. Raises ``ValueError`` for a folder that holds none of these."""
    found, newest = [Column(BASE, BASE)], []
    for stage in sorted(run.glob("stage*"), key=lambda path: _number(path.name)):
        if (stage / "adapter" / CARD).is_file():
            found.append(Column(stage.name, str(stage / "adapter")))
        newest = sorted(stage.glob(f"checkpoints/*/{STATE}"), key=lambda path: _number(path.parent.name))
    if newest:
        checkpoint = newest[-1].parent
        name = f"{checkpoint.parents[1].name} {checkpoint.name}"
        if checkpoint.parents[1].name != found[-1].name:
            found.append(Column(name, str(checkpoint)))
        if (checkpoint / AVERAGE).is_file():
            found.append(Column(f"{name} average", str(checkpoint), "ema"))
    if len(found) == 1:
        raise ValueError(f"{run}: holds no adapter and no checkpoint, expected the folder of a run")
    return found


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 0)
