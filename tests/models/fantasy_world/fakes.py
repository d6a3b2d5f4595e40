"""A batch of random scenes and a network that answers in the documented shapes without any block."""

import torch

from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.fantasy_world.config import SIZES, FantasyWorldConfig

TINY = SIZES["tiny"]


def make_batch(
    count: int = 2, config: FantasyWorldConfig = TINY, seed: int = 0, first_uid: int = 0, stage: int = 1
) -> dict:
    """Samples ``first_uid`` to ``first_uid + count - 1``; each depends on its uid only."""
    clip, (f, h, w) = config.clip, config.clip.latent
    samples = []
    for uid in range(first_uid, first_uid + count):
        g = torch.Generator().manual_seed(1000 + uid)
        depth = 1 + torch.rand(clip.frames, clip.height, clip.width, generator=g)
        depth[torch.rand(depth.shape, generator=g) < 0.1] = 0
        translation = 0.1 * torch.randn(clip.frames, 3, 1, generator=g)
        translation[0] = 0
        samples.append(
            {
                "latent": torch.randn(16, f, h, w, generator=g).bfloat16(),
                "text": torch.randn(7, config.backbone.text_dim, generator=g).bfloat16(),
                "depth": depth.half(),
                "extrinsics": torch.cat([torch.eye(3).expand(clip.frames, 3, 3), translation], -1),
                "intrinsics": torch.tensor([80.0, 80.0, clip.width / 2, clip.height / 2]).expand(clip.frames, 4),
                "frame": torch.randint(0, 256, (clip.height, clip.width, 3), generator=g, dtype=torch.uint8),
            }
        )
        if config.image_to_video:
            samples[-1]["image_latent"] = torch.randn(20, f, h, w, generator=g).bfloat16()
            samples[-1]["clip"] = torch.randn(257, config.backbone.image_dim, generator=g).bfloat16()
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    uids = range(first_uid, first_uid + count)
    return {
        **batch,
        "uid": torch.tensor(list(uids)),
        "rng_key": rng_keys(seed, stage, uids),
        "key": [f"scene_{uid}" for uid in uids],
    }


class FakeNetwork(torch.nn.Module):
    """Remembers what ``predict`` was asked; its answers depend on one parameter."""

    def __init__(self, stage: int = 1, config: FantasyWorldConfig = TINY) -> None:
        super().__init__()
        self.config, self.stage = config, stage
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls: list[dict] = []

    def predict(
        self,
        latents_noisy,
        timestep,
        text,
        extrinsics,
        intrinsics,
        camera_given,
        frames,
        image_latent=None,
        image_states=None,
    ):
        self.calls.append(
            {
                "latents_noisy": latents_noisy,
                "timestep": timestep,
                "text": text,
                "camera_given": camera_given,
                "frames": frames,
            }
        )
        (count, kept), size = frames.shape, self.config.clip
        ones = torch.ones(count, kept, size.height, size.width) * self.scale
        out = {
            "depth": 1.5 * ones,
            "depth_confidence": 2 * ones,
            "points": ones[..., None].expand(*ones.shape, 3),
            "points_confidence": 3 * ones,
            "poses": [torch.zeros(count, extrinsics.shape[1], 9) + i * self.scale for i in range(2)],
        }
        if self.stage == 2:
            out["video"] = latents_noisy * self.scale
        return out
