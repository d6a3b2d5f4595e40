"""The networks whose published weights are named compute what was published with them, under copied random weights."""

import pytest
import torch

from stagecoach.models.dance_with_music.champ.attention import temporal
from stagecoach.models.dance_with_music.config import FaceConfig
from stagecoach.models.dance_with_music.guidance.encoders import GuidanceEncoder, PoseNet
from stagecoach.models.dance_with_music.identity.face_tokens import FaceTokens
from stagecoach.models.dance_with_music.svd.unet import VAE_SCALE
from stagecoach.models.dance_with_music.weight_names import motion_name
from tests.models.dance_with_music import champ_inputs, published, svd_inputs

CHAMP, SVD = champ_inputs.TINY, svd_inputs.TINY
HEADS, GROUPS = CHAMP.unet.heads, CHAMP.unet.groups


def close(found, expected):
    """Within 1e-5 of the largest number."""
    assert found.shape == expected.shape
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def renamed(state):
    """Our motion modules under AnimateDiff's names."""
    theirs = {}
    for name in state:
        if ".motion_modules." in name:
            root, inner = name.split(".motion_modules.")
            number, inner = inner.split(".", 1)
            for ours, published_name in (
                ("attn1.", "attention_blocks.0."),
                ("attn2.", "attention_blocks.1."),
                ("norm1.", "norms.0."),
                ("norm2.", "norms.1."),
                ("norm3.", "ff_norm."),
            ):
                inner = inner.replace(ours, published_name)
            theirs[name] = f"{root}.motion_modules.{number}.temporal_transformer.{inner}"
    assert all(motion_name(new) == old for old, new in theirs.items())
    return {theirs.get(name, name): value for name, value in state.items()}


@pytest.fixture(scope="module")
def denoiser():
    return champ_inputs.open_zeros(champ_inputs.make_denoiser(champ_inputs.diffusers_unet(motion=True)))


def randomised(module, seed=0):
    """Every parameter at random, so that none can be mixed up unseen."""
    g = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.data = torch.randn(parameter.shape, generator=g) / fan**0.5 * (1.0 if fan > 1 else 0.3)
        parameter.data += float(fan == 1)
    return module.requires_grad_(False)


def test_a_motion_module_is_animatediffs(denoiser):
    """The norm sees each frame by itself; over the whole clip it gives something else."""
    module, state = denoiser.down_blocks[0].motion_modules[0], renamed(denoiser.state_dict())
    x = torch.randn(2 * 5, 32, 6, 4, generator=torch.Generator().manual_seed(1))
    x *= torch.linspace(0.3, 3, 10)[:, None, None, None]
    with torch.no_grad():
        found = temporal(module, x, 5)
        close(found, published.motion_module(state, "down_blocks.0.motion_modules.0", x, 5, HEADS, GROUPS))
        whole = module.norm(x.unflatten(0, (2, 5)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        assert (whole - module.norm(x)).abs().max() > 0.5


@pytest.mark.parametrize("frames", [1, 3])
def test_champ_with_its_reference_and_guidance_is_the_published_network(denoiser, frames):
    (x, level), conditions = champ_inputs.make_noisy(frames), champ_inputs.make_conditions(frames)
    unet = champ_inputs.diffusers_unet()
    reference, clip = conditions["references"], conditions["embedding"]
    guidance = torch.randn(2, frames, 32, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tokens = champ_inputs.make_reference(unet)(reference, clip)
        _, bank = published.champ(unet.state_dict(), reference, torch.zeros(2), clip, HEADS, GROUPS)
        assert tokens.keys() == bank.keys()
        for name, value in tokens.items():
            close(value, bank[name])
        found = denoiser(x, level, conditions, guidance, None, tokens)
        state = renamed(denoiser.state_dict())
        close(found, published.champ(state, x, level, clip, HEADS, GROUPS, guidance, bank)[0])


def test_champs_guidance_encoder_is_the_published_one():
    encoder = randomised(GuidanceEncoder(3, 320, (16, 32, 96, 256), 8, down=8, attention="last"))
    x = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    close(encoder(x), published.guidance_encoder(encoder.state_dict(), x, 8))


def test_pose_net_is_the_published_one():
    net = randomised(PoseNet(320))
    x = 2 * torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)) - 1
    close(net(x), published.pose_net(net.state_dict(), x))


def test_the_face_encoder_is_the_published_one():
    encoder, g = randomised(FaceTokens(FaceConfig(), 1024)), torch.Generator().manual_seed(1)
    face, clip = 20 * torch.randn(2, 512, generator=g) / 512**0.5, torch.randn(2, 1024, generator=g)
    close(encoder(face, clip), published.face_encoder(encoder.state_dict(), face, clip[:, None], heads=16))


def test_stable_animators_unet_is_the_published_one():
    """With its face, pose and reference; the norms over time see the whole clip here, as in Stable Video Diffusion."""
    denoiser, given = svd_inputs.make_denoiser(svd_inputs.diffusers_unet(), torch.float64), svd_inputs.make_inputs()
    conditions = given["conditions"]
    references = conditions["references"][:, 0] / VAE_SCALE
    read = (given["x"], given["level"], references, conditions["embedding"], given["tokens"], given["guidance"])
    with torch.no_grad():
        expected = published.stable_animator(denoiser.state_dict(), *(x.double() for x in read), SVD.unet.heads)
        close(denoiser(**given), expected.float())


def test_what_a_frame_brings_to_its_attention_over_time_does_not_depend_on_the_window(denoiser):
    """A frame by itself, in a window of 2 and in one of 8 enters the attention over time as the same tokens."""
    module = denoiser.down_blocks[0].motion_modules[0]
    x = 3 * torch.randn(8, 32, 4, 4, generator=torch.Generator().manual_seed(3))
    entered = []
    hook = module.proj_in.register_forward_pre_hook(lambda _, given: entered.append(given[0][:, 0]))
    with torch.no_grad():
        for frames in (1, 2, 8):
            temporal(module, x[:frames], frames)
    hook.remove()
    assert torch.equal(entered[1], entered[0])
    assert torch.equal(entered[2], entered[0])
