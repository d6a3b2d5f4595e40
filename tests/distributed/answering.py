"""A family that answers requests without a network, on real ranks: what the commands do with any."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecoach.data.outputs.sheet import write_picture
from stagecoach.data.outputs.video import write_video
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.generation import GenerationOptions, Request, RequestFields
from stagecoach.trainer.distributed import start
from stagecoach.trainer.generating.columns import parse_column
from stagecoach.trainer.generating.compare import compare
from stagecoach.trainer.generating.listing import read_requests
from stagecoach.trainer.generating.sample import locked_output, sample


class DrawnFields(RequestFields):
    fails: str | None = None


class Drawing:
    """A ``Generation`` by duck typing: noise of the request's generator as video and picture."""

    shown = ("video.mp4", "picture.png")

    def __init__(self, name: str, options: GenerationOptions) -> None:
        self.name, self.options, self.loaded = name, options, False

    def parse(self, entry: Any, source: Any) -> Request:
        if "wrong" in entry:
            raise ValueError(f"{source.where}: wrong is given")
        return Request(entry.get("id", source.name), self.options.seed, 2, 1.0, dict(entry), ())

    def identity(self) -> dict[str, Any]:
        return {"weights": self.name}

    def load(self) -> None:
        assert not self.loaded
        self.loaded = True

    def answer(self, request: Request, folder: Path) -> dict[str, Any]:
        assert self.loaded
        time.sleep(0.05)
        self.options.on_step()
        generator = request_generators(request.seed, request.id, [0])[0]
        frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator).numpy()
        write_video(folder / "video.mp4", frames, 8)
        failure = request.entry.get("fails")
        if failure == "memory":
            raise torch.OutOfMemoryError("no room")
        if failure:
            raise ValueError(failure)
        write_picture(folder / "picture.png", np.asarray(frames[0]))
        return {"rank": torch.distributed.get_rank()}


@dataclass(frozen=True)
class Fake:
    """Stands where ``Chosen`` does, and for the weights and the family that it opens."""

    adapter: str
    which: str = "raw"
    size: str = "tiny"
    family: Any = None
    config: Any = None

    @property
    def card(self) -> Any:
        return self

    def open(self) -> "Fake":
        return replace(self, family=self)

    def describe(self) -> str:
        return self.adapter

    def generation(self, weights: Any, options: GenerationOptions) -> Drawing:
        return Drawing(f"{self.adapter}, {self.which}", options)

    def __hash__(self) -> int:
        return hash(self.adapter)


def answer_all(requests: str, output: str, adapter: str = "a", remake: bool = False) -> dict[str, Any]:
    world, folder = start(), Path(output)
    listed = read_requests(Path(requests))
    with locked_output(world, folder):
        found = sample(
            world,
            Fake(adapter),
            GenerationOptions(),
            listed,
            lambda request: folder / request.id,
            remake,  # type: ignore[arg-type]
        )
    return vars(found)


def compare_all(requests: str, output: str) -> dict[str, Any]:
    columns = [parse_column(text) for text in ("base", "late=x/y:average")]
    listed = read_requests(Path(requests))
    chosen: Any = Fake("base")
    return vars(compare(start(), columns, chosen, GenerationOptions(), listed, Path(output), [0, 7]))
