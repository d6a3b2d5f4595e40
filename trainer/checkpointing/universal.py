"""DeepSpeed's universal layout, through which a checkpoint of another world size or ZeRO stage is loaded."""

import os
import shutil
from argparse import Namespace
from pathlib import Path

import deepspeed
import torch

from stagecoach.data.files import temporary_name
from stagecoach.trainer.checkpointing.state import TAG
from stagecoach.trainer.distributed import World, on_first


def to_universal(directory: Path, world: World) -> Path:
    """Convert the DeepSpeed shards of a checkpoint to the universal layout, on rank 0; return its folder.

    It lies next to the checkpoint, since a sealed directory is never changed.
    """
    target = directory.parent / f"universal_{directory.name}"

    def convert() -> None:
        if target.exists():
            # Left by a run that died while it was loading.
            shutil.rmtree(target)
        from deepspeed.checkpoint import ds_to_universal

        temporary = temporary_name(target)
        ds_to_universal.main(
            Namespace(
                input_folder=str(directory / TAG),
                output_folder=str(temporary / TAG),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=False,
            )
        )
        (temporary / "latest_universal").write_text(TAG)
        os.replace(temporary, target)

    on_first(world, convert)
    return target


def separate_groups(engine: deepspeed.DeepSpeedEngine, declared: list[dict]) -> None:
    """Undo what loading the universal layout mixes up: DeepSpeed gives every group the settings of the first one, and
    under ZeRO-3 all of them one step counter, which torch's AdamW then advances once per group."""
    for group, settings in zip(engine.optimizer.param_groups, declared, strict=True):
        group.update(settings)
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
