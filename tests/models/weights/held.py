"""A family's trained weights in every form that the loader opens, without training them."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stagecoach.data.files import seal_directory, write_json
from stagecoach.data.tensors import save_tensors
from stagecoach.data.weight_files import AVERAGE, CARD, STATE, WEIGHTS
from stagecoach.models import get_family
from stagecoach.models.trainable import trainable_names, trained_before
from stagecoach.models.weights import AdapterCard
from stagecoach.trainer.adapter import write_adapter
from stagecoach.trainer.checkpointing.state import TrainingState

BASE = "0" * 64


@dataclass(frozen=True)
class Held:
    """What a run leaves: ``stage<n>/adapter`` and a checkpoint at the same weights, ``tensors`` of the last stage."""

    run: Path
    stage: int
    tensors: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]

    @property
    def adapter(self) -> Path:
        return self.run / f"stage{self.stage}" / "adapter"

    @property
    def checkpoint(self) -> Path:
        return self.run / f"stage{self.stage}" / "checkpoints" / "checkpoint_7"


def hold(run: Path, family_name: str, size: str = "tiny", config=None, base: str | None = None) -> Held:
    """Write the adapters of all stages, and a checkpoint of the last one with an average, of values that differ from
    the initial ones."""
    family = get_family(family_name)
    config = config or family.sizes[size]
    specs, before, found = family.stages(config), None, {}
    generator = torch.Generator().manual_seed(0)

    def moved(values: torch.Tensor) -> torch.Tensor:
        return values + 0.05 * torch.randn(values.shape, generator=generator)

    for spec in specs:
        network = family.build(config, spec.index, "cpu", torch.float32)
        loaded = family.load_base(network, config, "cpu")
        trained = trainable_names(network, spec)
        parameters = dict(network.named_parameters())
        found = {
            name: moved(parameters[name].detach()) if name in trained else found[name]
            for name in sorted(trained_before(network, specs, spec.index + 1))
        }
        folder = run / f"stage{spec.index}" / "adapter"
        card = AdapterCard(
            family=family_name,
            size=size,
            stage=spec.index,
            stage_name=spec.name,
            steps=7,
            recipe="r",
            base=base or loaded,
            predecessor=before.sha256 if before else None,
            export_weights="raw",
            config=config.model_dump(mode="json"),
            started_from={"adapter": str(run / "not here")} if before else {},
        )
        before = write_adapter(folder, found, card, family.adapter_file)
    held = Held(run, spec.index, found, {name: moved(found[name]) for name in trained})
    own = {name: found[name] for name in trained}
    write_checkpoint(held.checkpoint, card, own, held.average)
    return held


def write_checkpoint(folder: Path, card: AdapterCard, own: dict, average: dict | None) -> None:
    """As ``Saver`` leaves it, but for the optimizer's state."""
    folder.mkdir(parents=True)
    save_tensors(own, folder / WEIGHTS)
    if average is not None:
        save_tensors(average, folder / AVERAGE)
    state = TrainingState(card.family, card.size, card.stage, 7, 1, 1, "fp32", "replicate", 1, 0, "", card.predecessor)
    write_json(folder / STATE, asdict(state))
    write_json(folder / CARD, asdict(card))
    seal_directory(folder)
