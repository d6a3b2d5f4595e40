"""The music that guidance takes is normalised as MusicToPose's is."""

import torch

from stagecoach.models import get_family
from stagecoach.models.dance_with_music.config import SIZES, WeightsConfig

TINY = SIZES["tiny"]
GUIDED = TINY.model_copy(
    update={"plan": "guidance", "guidance": TINY.guidance.model_copy(update={"types": ("pose", "music")})}
)


def begun(config, stage):
    music = 3 * torch.randn(100, 35, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 50
    family = get_family("dance_with_music")
    network = family.build(config, stage, "meta", torch.float32)
    network.to_empty(device="cpu")
    for name, parameter in network.named_parameters():
        if "music_norm" in name:
            torch.nn.init.ones_(parameter)
    family.init_from_statistics(
        network,
        {"music_sum": music.sum(0).tolist(), "music_square_sum": music.square().sum(0).tolist(), "frame_count": 100},
    )
    return network, music.float()


def test_guidance_by_music_begins_at_the_splits_mean_and_variance():
    network, music = begun(GUIDED, 1)
    found = network.guidance.encoders["music"].music_norm(music)
    torch.testing.assert_close(found.mean(0), torch.zeros(35), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.var(0, correction=0), torch.ones(35), atol=1e-3, rtol=0)


def test_weights_that_were_given_keep_their_normalisation():
    given = WeightsConfig(m2p="m2p.safetensors", guidance={"music": "music.safetensors"})
    for config, stage, where in ((GUIDED, 1, "guidance.encoders.music"), (TINY, 1, "m2p")):
        network, _ = begun(config.model_copy(update={"weights": given}), stage)
        assert torch.equal(network.get_submodule(where).music_norm.shift, torch.ones(35))
        network, _ = begun(config, stage)
        assert (network.get_submodule(where).music_norm.shift < -40).all()
