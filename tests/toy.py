"""A family that is small enough to compute by hand: a frozen linear map, a trained block, a zero-initialised gate.

Stage 1 trains ``first``; stage 2 adds ``second``. Its loss depends on keyed noise, so that a change of
order or of keys shows.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.format.shards import ShardWriter, write_manifest
from stagecoach.models.common.config import Section
from stagecoach.models.common.keyed import keyed_randn
from stagecoach.models.family import ExitCriterion, Family, LossTerm, Metric, Schedule, StageSpec, Trainable
from stagecoach.models.metrics.record import Record

SCHEMA = SampleSchema("toy", 1, (Field("x", "f32", (8,)), Field("y", "f32", (8,))))


class ToyConfig(Section):
    width: int = 8
    noise: float = 0.1
    unused_layer: bool = False
    write_frozen: bool = False
    keep_first: bool = False


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Mixed(nn.Module):
    """A frozen and a trained half in one module, as an IRG layer is."""

    def __init__(self, width: int, stage: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(width, width)
        self.first = Block(width)
        self.second = Block(width) if stage >= 2 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x + self.frozen(x))
        return x if self.second is None else self.second(x)


class ToyNetwork(nn.Module):
    def __init__(self, config: ToyConfig, stage: int) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Mixed(config.width, stage) for _ in range(2))

    def forward(self, batch, progress):
        dtype = self.layers[0].frozen.weight.dtype
        x = batch["x"] + self.config.noise * keyed_randn(batch, "noise", (8,))
        h = x.to(dtype)
        for i, layer in enumerate(self.layers):
            used = 0.0 if self.config.unused_layer and i == 1 else 1.0
            h = h + used * (layer(h) - h)
        if self.config.write_frozen and progress.step == 2:
            with torch.no_grad():
                self.layers[0].frozen.bias.add_(1.0)
        error = (h.float() - batch["y"]).square().mean(-1)
        if not progress.training:
            error = error.detach()
        return {"losses": {"fit": error}, "metrics": {"fit_abs": (error.sqrt().sum(), torch.tensor(float(len(error))))}}


class ToyFamily(Family):
    name = "toy"
    config_type = ToyConfig
    sizes: ClassVar = {"tiny": ToyConfig()}
    metrics: ClassVar = (Metric("val_fit", baseline="val_fit_baseline"),)

    def schema(self, config):
        return SCHEMA

    def stages(self, config):
        first = Trainable("layers.*.first")
        loss = (LossTerm("fit", Schedule(1.0)),)
        again = () if config.keep_first else (first,)
        return (
            StageSpec(1, "one", (first,), loss, exits=(ExitCriterion("loss/fit", 0.5),)),
            StageSpec(2, "two", (*again, Trainable("layers.*.second", lr_scale=0.5)), loss),
        )

    def build(self, config, stage, device, dtype):
        with torch.device(device):
            network = ToyNetwork(config, stage)
        if torch.device(device).type != "meta":
            for name, parameter in network.named_parameters():
                generator = torch.Generator().manual_seed(sum(map(ord, name)))
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            for layer in network.layers:
                layer.frozen.to(dtype)
                if config.keep_first and stage == 2:
                    layer.first.to(dtype)
        return network

    def open_base(self, config):
        raise AssertionError("a toy has no base to open")

    def check_base(self, config):
        return "no base"

    def load_base(self, network, config, device, on_loaded=None):
        if on_loaded is not None:
            for layer in network.layers:
                on_loaded(layer.frozen)
        return "toy-base"

    def recompute_units(self, network):
        return list(network.layers)

    def leaf_modules(self, network):
        return [layer.first for layer in network.layers]

    def example_sizes(self, config, stage):
        return {}

    def validate(self, network, batch, progress, statistics):
        output = network(batch, progress)
        return {
            "val_fit": (output["losses"]["fit"].sum(), torch.tensor(float(len(batch["uid"])))),
            "val_fit_baseline": (batch["y"].square().mean(-1).sum(), torch.tensor(float(len(batch["uid"])))),
        }

    sampled_metrics: ClassVar = ("psnr", "motion_amount", "lpips")

    def sampled(self, network, batch, progress):
        """Two frames that are off by a number that goes with the error of the sample."""
        off = 0.1 * network(batch, progress)["losses"]["fit"].float().tanh()
        true = torch.full((2, 3, 4, 4), 0.5)
        change = torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)
        return [
            (Record(key, frames=true + change * o, rate=4.0), Record(key, frames=true))
            for key, o in zip(batch["key"], off, strict=True)
        ]

    def preview(self, network, batch, progress):
        return {batch["key"][0]: np.full((4, 4, 3), 128, np.uint8)}


def write_toy_shards(directory, samples: int = 24, seed: int = 0, broken: tuple[int, ...] = ()) -> None:
    """SHARDS/train and SHARDS/val with a learnable map from x to y; samples ``broken`` of train hold a number whose
    square is above what fp32 holds: a loss that is not finite, of data that is."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((8, 8)).astype(np.float32) / 3
    for split, count in (("train", samples), ("val", 5)):
        with ShardWriter(directory / split, SCHEMA, max_bytes=8000) as writer:
            for i in range(count):
                x = rng.standard_normal(8).astype(np.float32)
                if split == "train" and i in broken:
                    x[3] = 1e38
                writer.add(f"{split}{i:04d}", {"x": x, "y": x @ weights}, {})
        write_manifest(directory / split, SCHEMA, writer.shards, {}, {})
