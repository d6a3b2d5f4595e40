import dataclasses

import pytest
import torch

from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.common.noise import FlowMatching
from stagecoach.models.family import Progress
from stagecoach.models.fantasy_world.step import training_step
from tests.models.fantasy_world.fakes import TINY, FakeNetwork, make_batch

STEP = Progress(step=0, total_steps=10, stage=1, seed=0)


def with_losses(**constants):
    return TINY.model_copy(update={"losses": TINY.losses.model_copy(update=constants)})


def test_stage_one_has_the_geometry_losses_and_stage_two_diffusion_besides():
    batch = make_batch(2)
    first = training_step(FakeNetwork(1), batch, STEP)
    second = training_step(FakeNetwork(2), batch, dataclasses.replace(STEP, stage=2))
    assert set(first["losses"]) == {"depth", "points", "camera"}
    assert set(second["losses"]) == {"depth", "points", "camera", "diffusion"}
    for loss in second["losses"].values():
        assert loss.shape == (2,)
        assert loss.dtype == torch.float32
        assert loss.requires_grad
    for total, count in second["metrics"].values():
        assert total.shape == count.shape == ()
        assert total.dtype == count.dtype == torch.float32
        assert not total.requires_grad


def test_what_is_drawn_belongs_to_the_sample_not_to_its_place():
    together, alone = FakeNetwork(2), FakeNetwork(2)
    whole = training_step(together, make_batch(4), STEP)
    for uid in range(4):
        single = training_step(alone, make_batch(1, first_uid=uid), STEP)
        for name, value in single["losses"].items():
            torch.testing.assert_close(whole["losses"][name][uid], value[0], rtol=1e-6, atol=1e-7)
        for name, value in alone.calls[-1].items():
            assert torch.equal(together.calls[0][name][uid], value[0]), name


def test_another_seed_draws_other_numbers():
    network = FakeNetwork()
    training_step(network, make_batch(2), STEP)
    training_step(network, make_batch(2, seed=1), STEP)
    assert not torch.equal(network.calls[0]["timestep"], network.calls[1]["timestep"])
    assert not torch.equal(network.calls[0]["latents_noisy"], network.calls[1]["latents_noisy"])


def test_cameras_and_texts_are_withheld_at_the_configured_rate():
    config = with_losses().model_copy(update={"camera_dropout": 0.17, "text_dropout": 0.4, "frames_per_step": 1})
    network = FakeNetwork(config=config)
    one = make_batch(1, config)
    count = 600
    uids = list(range(count))
    many = {name: value.expand(count, *value.shape[1:]) for name, value in one.items() if torch.is_tensor(value)}
    many.update(uid=torch.tensor(uids), rng_key=rng_keys(0, 1, uids), latent=many["latent"][:, :, :1, :1, :1])
    training_step(network, many, STEP)
    call = network.calls[0]
    assert (~call["camera_given"]).float().mean().item() == pytest.approx(0.17, abs=0.04)
    assert (call["text"] == 0).all(-1).all(-1).float().mean().item() == pytest.approx(0.4, abs=0.05)


def test_nothing_is_withheld_outside_of_training():
    network = FakeNetwork(config=TINY.model_copy(update={"camera_dropout": 1.0, "text_dropout": 1.0}))
    batch = make_batch(3)
    training_step(network, batch, dataclasses.replace(STEP, training=False))
    assert network.calls[0]["camera_given"].all()
    assert torch.equal(network.calls[0]["text"], batch["text"])
    training_step(network, batch, STEP)
    assert not network.calls[1]["camera_given"].any()
    assert (network.calls[1]["text"] == 0).all()


def test_diffusion_loss_is_the_velocity_error_and_the_bell_weights_it():
    batch = make_batch(2)
    plain, bell = FakeNetwork(2), FakeNetwork(2, with_losses(diffusion_weighting="bell"))
    result, weighted = training_step(plain, batch, STEP), training_step(bell, batch, STEP)
    sigma = plain.calls[0]["timestep"] / 1000
    noise = (plain.calls[0]["latents_noisy"] - (1 - sigma.view(-1, 1, 1, 1, 1)) * batch["latent"].float()) / sigma.view(
        -1, 1, 1, 1, 1
    )
    expected = (plain.calls[0]["latents_noisy"] - (noise - batch["latent"].float())).square().flatten(1).mean(1)
    torch.testing.assert_close(result["losses"]["diffusion"], expected, rtol=1e-4, atol=1e-5)
    expected_bell = expected * FlowMatching(5.0).bell(sigma)
    torch.testing.assert_close(weighted["losses"]["diffusion"], expected_bell, rtol=1e-4, atol=1e-5)
    assert weighted["metrics"]["diffusion_loss"][0].item() == pytest.approx(expected.sum().item(), rel=1e-4)


def test_metrics_are_plain_errors_over_samples_that_have_any_truth():
    batch = make_batch(2)
    batch["depth"][1] = 0
    frames = TINY.clip.frames
    network = FakeNetwork(config=TINY.model_copy(update={"frames_per_step": frames}))
    metrics = training_step(network, batch, STEP)["metrics"]
    truth = batch["depth"][0].float()
    total, count = metrics["depth_loss"]
    assert count == 1
    assert total.item() == pytest.approx((1.5 - truth[truth > 0]).abs().mean().item(), rel=1e-5)
    assert metrics["point_loss"][1] == 1
    assert metrics["camera_loss"][1] == 2
    assert metrics["depth_confidence"][0].item() == pytest.approx(4)


def test_camera_error_is_split_by_what_the_network_was_told():
    network = FakeNetwork(config=TINY.model_copy(update={"camera_dropout": 0.5}))
    metrics = training_step(network, make_batch(8), STEP)["metrics"]
    given = network.calls[0]["camera_given"].sum().item()
    assert 0 < given < 8
    assert metrics["camera_loss_given"][1] == given
    assert metrics["camera_loss_withheld"][1] == 8 - given
    total = metrics["camera_loss_given"][0] + metrics["camera_loss_withheld"][0]
    torch.testing.assert_close(total, metrics["camera_loss"][0])
