"""A small FantasyWorld that has learned where a camera turns, for tests and figures.

Two rooms are seen by cameras that pan to the left and to the right, and prompts name the room, not the way: the base
learns the rooms, stage 2 the cameras, from no adapter and with little weight on the geometry.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach import FantasyWorldPipeline
from stagecoach.data.fantasy_world.camera_files import load_cameras
from stagecoach.data.fantasy_world.synthetic import FRAME_RATE, Variety, render_clip
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.fantasy_world.config import SIZES, FantasyWorldConfig
from tests.learning.scripts import train
from tests.tiny_wan import train_tiny_wan
from tests.tiny_world import FRAMES, HEIGHT, WIDTH, make_tiny_world

CLIPS, BASE_STEPS, STEPS, SEED = 120, 400, 200, 3
VARIETY = Variety(paths=("pan_left", "pan_right"), described=False, interiors=2)
SETTINGS = {
    "zero": 1,
    "ds_config": "null",
    "precision": "fp32",
    "activation_checkpointing": "none",
    "logging.wandb": "off",
    "logging.every": 50,
    "validation_samples": 4,
    "preview_samples": 0,
    "model.clip.height": HEIGHT,
    "model.clip.width": WIDTH,
    "model.losses.shift": 3,
    "model.camera_dropout": 0.1,
    "model.frames_per_step": 1,
    "stages.2.learning_rate": 2e-3,
    "stages.2.micro_batch": 8,
    "stages.2.loss_weights": "{depth: 0.003, points: 0.003, camera: 0.01}",
    **{f"stages.2.{name}": STEPS for name in ("steps", "checkpoint_every", "validate_every", "preview_every")},
}


@dataclass(frozen=True)
class SmallWorld:
    adapter: Path
    base: Path
    encoders: Path

    def pipeline(self) -> FantasyWorldPipeline:
        parts = {name: self.encoders / name for name in ("vae", "text_encoder", "tokenizer")}
        pipeline = FantasyWorldPipeline.from_adapter(self.adapter, base=self.base, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def films(self, path: str | None, samples: int, room: int = 0, steps: int = 16, **more: Any) -> np.ndarray:
        """Videos [samples, F, H, W, 3] in 0..1 of a room along a preset ``path`` of the camera, None without a camera,
        of the same noise each time."""
        shown = render_clip(SEED, room * len(VARIETY.paths), 1, HEIGHT, WIDTH, VARIETY)
        given: dict[str, Any] = {}
        if path is not None:
            fov = 2 * np.degrees(np.arctan(0.5 / shown.intrinsics[1]))
            cameras = load_cameras(f"{path},fov={fov:.2f}", FRAMES, HEIGHT, WIDTH, FRAME_RATE)
            given = {"cameras": cameras.extrinsics, "intrinsics": cameras.intrinsics}
        return (
            self.pipeline()(
                shown.prompt,
                num_frames=FRAMES,
                height=HEIGHT,
                width=WIDTH,
                num_inference_steps=steps,
                guidance_scale=1.0,
                geometry=False,
                num_videos_per_prompt=samples,
                generator=request_generators(0, "films", range(samples)),
                **given,
                **more,
            )
        ).frames


def train_small_world(folder: Path) -> SmallWorld:
    world = make_tiny_world(folder / "data", CLIPS, VARIETY, seed=SEED)
    values = SIZES["tiny"].model_dump()
    values["clip"] = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    values["losses"]["shift"] = SETTINGS["model.losses.shift"]
    train_tiny_wan(folder / "wan", world, FantasyWorldConfig.model_validate(values), BASE_STEPS)
    settings = SETTINGS | {"model.base": folder / "wan"}
    train("stage2.py", folder / "run", settings, "--profile", "demo", "--data", world.shards, "--init", "base")
    return SmallWorld(folder / "run" / "stage2" / "adapter", folder / "wan", world.encoders)
