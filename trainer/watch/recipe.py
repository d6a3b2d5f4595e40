"""The recipe's section ``watch``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stagecoach.models.common.config import Section
from stagecoach.trainer.watch.judge import Bounds


class WatchRecipe(Section):
    """What is done about ranks that stand still or die. Seconds are without a sign of life; ``seconds`` becomes ten
    median steps where those are longer, ``slow_seconds`` is for building, saving, validation and the first step."""

    on_hang: Literal["stop", "wait"] = "stop"
    seconds: float = Field(45.0, gt=0)
    slow_seconds: float = Field(1800.0, gt=0)

    def bounds(self, batch_timeout: float) -> Bounds:
        """``batch_timeout``: seconds after which the stream itself gives up."""
        return Bounds(self.seconds, max(self.slow_seconds, self.seconds), max(batch_timeout + 60.0, self.seconds))
