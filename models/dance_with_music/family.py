"""DanceWithMusic as the trainer sees it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stagecoach.data.dance_with_music.reference_noise import noise_input
from stagecoach.data.dance_with_music.schema import FRAME_RATE, dance_schema
from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.streaming.windows import Window
from stagecoach.models.common.licences import APACHE, INSIGHTFACE, MIT, OPENRAIL, SVD, Part
from stagecoach.models.dance_with_music.base import fill_base, open_base
from stagecoach.models.dance_with_music.clip import CONFIDENCE_STEPS, POSE_STEPS
from stagecoach.models.dance_with_music.config import SIZES, DanceConfig, pixel_noise
from stagecoach.models.dance_with_music.helpers import check_helpers, make_helpers
from stagecoach.models.dance_with_music.music_to_pose.model import MusicNorm
from stagecoach.models.dance_with_music.network import build_network
from stagecoach.models.dance_with_music.onnx_components import onnx_components
from stagecoach.models.dance_with_music.preview import SAMPLED, preview, sampled
from stagecoach.models.dance_with_music.stages import METRICS, make_stages, window_frames
from stagecoach.models.dance_with_music.validate import validate
from stagecoach.models.dance_with_music.weight_names import part_of
from stagecoach.models.family import Batch, Family
from stagecoach.models.metrics.record import Record

MANY_EPOCHS = 10**6
_CLIP = Part("CLIP of the reference", "openai/clip-vit-large-patch14", MIT)
_ARCFACE = Part("ArcFace of the face", "insightface antelopev2 (glintr100)", INSIGHTFACE)


class DanceWithMusicFamily(Family):
    """Music to pose to a dancing person who keeps their face; CHAMP on Stable Diffusion 1.5, or StableAnimator on
    Stable Video Diffusion."""

    name = "dance_with_music"
    config_type = DanceConfig
    sizes = SIZES
    metrics = METRICS
    aliases: ClassVar[Mapping[str, str]] = {
        f"{name}_loss": f"loss/{name}" for name in ("pose", "face", "diffusion", "id", "temporal", "custom")
    }

    parts: ClassVar[Mapping[str, tuple[Part, ...]]] = {
        "champ-sd15": (
            Part("UNet, VAE", "stable-diffusion-v1-5/stable-diffusion-v1-5", OPENRAIL, base=True),
            Part("motion modules", "guoyww/animatediff-motion-adapter-v1-5-2", APACHE),
            _CLIP,
            _ARCFACE,
        ),
        "svd-xt": (Part("UNet, VAE, CLIP", "stabilityai/stable-video-diffusion-img2vid-xt", SVD, base=True), _ARCFACE),
    }
    stages = staticmethod(make_stages)
    build = staticmethod(build_network)
    preview = staticmethod(preview)
    validate = staticmethod(validate)
    sampled = staticmethod(sampled)
    sampled_metrics = SAMPLED
    open_base = staticmethod(open_base)
    adapter_file = staticmethod(part_of)
    onnx_components = staticmethod(onnx_components)

    def schema(self, config: DanceConfig) -> SampleSchema:
        return dance_schema(config.m2p.music_dim, config.unet.cross_dim, config.guidance.map_channels)

    def encoder_inputs(self, config: DanceConfig) -> dict[str, str | None]:
        """Noise on the references' pixels where the config has it there, and nowhere else."""
        return {"vae": noise_input(pixel_noise(config))}

    def check_base(self, config: DanceConfig) -> str:
        """On the weights of all parts and the helpers."""
        return f"{open_base(config).where}; {check_helpers(config)}"

    load_base = staticmethod(fill_base)

    def helpers(
        self, config: DanceConfig, stage: int, device: torch.device | str, dtype: torch.dtype
    ) -> dict[str, nn.Module]:
        """Where there are pictures: the VAE's decoder, and ArcFace where one is given or a loss needs it."""
        return {} if config.phase(stage) == "m2p" else make_helpers(config, device, dtype)

    def init_from_statistics(self, network: nn.Module, statistics: Mapping[str, Any]) -> None:
        """The first normalisation of music, for MusicToPose and for guidance by music, as the training split has it;
        weights that were given bring their own."""
        weights = network.config.weights
        given = {*(["m2p"] if weights.m2p else []), *(f"guidance_{name}" for name in weights.guidance)}
        for name, module in network.named_modules():
            if isinstance(module, MusicNorm) and part_of(f"{name}.shift") not in given:
                maps = name.startswith("guidance.encoders.music_map.") and network.config.guidance.map_channels
                kind, count = ("music_map", "music_map_count") if maps else ("music", "frame_count")
                module.fit(
                    torch.tensor(statistics[f"{kind}_sum"], dtype=torch.float64),
                    torch.tensor(statistics[f"{kind}_square_sum"], dtype=torch.float64),
                    statistics[count],
                )

    def window(self, config: DanceConfig, stage: int, step: int, total_steps: int, epoch: int) -> Window:
        frames = window_frames(config.frames, config.schedules.grown, config.phase(stage), step, total_steps, epoch)
        return Window(frames, config.frames.stride)

    def record(self, arrays):
        """Poses and beats."""
        xy, conf, beat = (
            torch.from_numpy(np.array(arrays[name], np.float32)) for name in ("pose_xy", "pose_conf", "beat")
        )
        return Record(rate=FRAME_RATE, pose=(xy / POSE_STEPS, conf / CONFIDENCE_STEPS), beat=beat)

    def generation(self, weights, options):
        from stagecoach.models.dance_with_music.generate import DanceGeneration  # its pipeline opens families

        return DanceGeneration(weights, options)

    def example_sizes(self, config: DanceConfig, stage: int) -> dict[str, int]:
        h, w = config.picture.latent
        longest = window_frames(config.frames, config.schedules.grown, config.phase(stage), 1, 1, MANY_EPOCHS)
        return {
            "F": longest,
            "R": config.reference.count,
            "h": h,
            "w": w,
            "H": config.picture.height,
            "W": config.picture.width,
            "hm": h,
            "wm": w,
        }

    def fill_example(self, batch: Batch, config: DanceConfig) -> None:
        """Points around the middle of the picture, all found; a face of a quarter of it in every frame; unit vectors;
        references that are pictures of their own."""
        xy = batch["pose_xy"]
        xy.copy_((65535 * torch.special.ndtr(torch.randn(xy.shape, device=xy.device))).to(torch.int32).to(xy.dtype))
        batch["pose_conf"].fill_(255)
        batch["face_box"].copy_(batch["face_box"].new_tensor([0.25, 0.25, 0.75, 0.75]).expand_as(batch["face_box"]))
        for name in ("face_valid", "ref_face_valid"):
            batch[name].fill_(1)
        batch["ref_arcface_norm"].fill_(20)
        batch["ref_frame"].fill_(-1)
        batch["ref_arcface"] = F.normalize(batch["ref_arcface"], dim=-1)
        batch["window_start"] = torch.zeros(len(xy), dtype=torch.int64, device=xy.device)
