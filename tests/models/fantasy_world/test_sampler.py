"""The loop: what guidance keeps and drops, where the geometry is read, and what pictures do not depend on."""

import pytest
import torch

from stagecoach.models.fantasy_world.sampler import INFERENCE_SIGMA, Guidance, read_geometry, sample
from stagecoach.models.fantasy_world.step import make_process
from tests.models.fantasy_world.inputs import make_inputs, open_gates

STEPS = 3
LAYOUTS = ("together", "sequential")


@pytest.fixture(scope="module")
def network(config, make_network):
    network = make_network(config, 2)
    open_gates(network)
    return network


def make_request(config, batch=2):
    """Conditions and noise; the camera of every sample is given."""
    inputs = make_inputs(config, batch)
    noise, _, frames = (inputs.pop(name) for name in ("latents_noisy", "timestep", "frames"))
    return inputs | {"camera_given": torch.ones(batch, dtype=torch.bool)}, noise, frames


def draw(network, config, guidance, batch=2, only=None, **more):
    conditions, noise, frames = make_request(config, batch)
    conditions["negative_text"] = torch.randn(conditions["text"].shape, generator=torch.Generator().manual_seed(3))
    if only is not None:
        conditions, noise, frames = (
            {name: value[only : only + 1] for name, value in conditions.items()},
            *(x[only : only + 1] for x in (noise, frames)),
        )
    process = make_process(config.losses)
    return sample(network.predict, conditions, noise, process, STEPS, guidance, frames=frames, **more)


def test_dense_heads_run_in_the_last_step_only_and_once_for_its_full_pass(network, config):
    calls = []
    hooks = [
        head.register_forward_hook(lambda m, args, out: calls.append(args[1])) for head in network.dpt.heads.values()
    ]
    try:
        found = {layout: draw(network, config, Guidance(3.0, 2.0, layout)) for layout in LAYOUTS}
    finally:
        [hook.remove() for hook in hooks]
    frames = make_request(config)[2]
    assert len(calls) == 2 * len(hooks)
    assert all(torch.equal(call, frames) for call in calls)
    level = make_process(config.losses).sigmas(STEPS)[-1].item()
    for result in found.values():
        assert result.sigma_read == pytest.approx(level, abs=1e-6)
        assert result.geometry["depth"].shape == (2, 3, config.clip.height, config.clip.width)


@pytest.mark.parametrize("camera", [None, 1.5])
def test_pictures_depend_neither_on_the_batch_nor_on_the_layout_of_guidance(network, config, camera):
    together, sequential = (draw(network, config, Guidance(3.0, camera, layout)) for layout in LAYOUTS)
    alone = draw(network, config, Guidance(3.0, camera), only=1)
    for found, expected in ((together, sequential), (alone, sequential)):
        rows = slice(1, 2) if found is alone else slice(None)
        torch.testing.assert_close(found.latents, expected.latents[rows], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.geometry["depth"], expected.geometry["depth"][rows], atol=1e-4, rtol=1e-4)
    assert sequential.latents.std() > 0.1


def remembering(given, answer):
    """A ``predict`` that notes which conditions it was given and answers with a constant."""

    def predict(x, level, text, camera_given, image_latent, frames):
        seen = bool(text.any()), bool(camera_given.all()), image_latent is not None
        given.append(seen)
        return {"video": torch.full_like(x, answer[seen[:2]])}

    return predict


def test_camera_and_picture_are_given_on_both_sides_of_guidance_and_text_on_one(tiny):
    given, one = [], torch.ones(1, 1)
    conditions = {"text": one, "camera_given": one.bool(), "image_latent": one}
    predict = remembering(given, {(False, True): 1.0, (True, True): 3.0})
    found = sample(predict, conditions, torch.zeros(1, 1), make_process(tiny.losses), 1, Guidance(5.0))
    assert given == [(False, True, True), (True, True, True)]
    assert found.latents.item() == pytest.approx(-(1 + 5 * 2))
    assert found.geometry is found.sigma_read is None


def test_guidance_on_the_camera_takes_three_passes_and_the_formula_of_the_two_differences(tiny):
    given, one = [], torch.ones(1, 1)
    conditions = {"text": one, "camera_given": one.bool(), "image_latent": one}
    predict = remembering(given, {(False, False): 1.0, (True, False): 3.0, (True, True): 4.0})
    process = make_process(tiny.losses)
    found = sample(predict, conditions, torch.zeros(1, 1), process, 1, Guidance(5.0, 2.0))
    assert [g[:2] for g in given] == [(False, False), (True, False), (True, True)]
    assert found.latents.item() == pytest.approx(-(1 + 5 * 2 + 2 * 1))
    given.clear()
    sample(predict, conditions, torch.zeros(1, 1), process, 1, Guidance(1.0))
    assert given == [(True, True, True)]


def test_all_frames_read_at_once_are_those_read_a_few_at_a_time(network, config):
    conditions, noise, _ = make_request(config)
    latents, process = torch.randn_like(noise), make_process(config.losses)
    frames = torch.arange(config.clip.frames).expand(2, -1)

    def read(part):
        return read_geometry(network.predict, conditions, latents, noise, process, part)

    whole, parts = read(frames), [read(part) for part in frames.split(4, 1)]
    for name in ("depth", "depth_confidence", "points", "points_confidence"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts], 1), whole[name], atol=1e-5, rtol=1e-5)
    none = read(frames[:, :0])
    torch.testing.assert_close(none["video"], whole["video"])
    assert none["depth"].shape == (2, 0, config.clip.height, config.clip.width)
    assert none["points"].shape == (*none["depth"].shape, 3)


def test_given_videos_are_read_at_the_level_of_the_last_of_the_published_steps(tiny):
    seen = {}

    def predict(x, level, frames):
        seen.update(x=x, level=level)
        return {}

    latents, noise = torch.zeros(1, 2), torch.ones(1, 2)
    read_geometry(predict, {}, latents, noise, make_process(tiny.losses), torch.zeros(1, 1))
    assert seen["level"].item() == pytest.approx(92.5926, abs=1e-3)
    torch.testing.assert_close(seen["x"], torch.full((1, 2), INFERENCE_SIGMA))
    assert make_process(tiny.losses).sigmas(50)[-1].item() == pytest.approx(INFERENCE_SIGMA, abs=1e-6)
