"""The training forward: which layers train, what is drawn, what a withheld caption is."""

from __future__ import annotations

import pytest
import torch

from stagecoach.models.common.keyed import withheld
from stagecoach.models.family import Progress
from stagecoach.models.stable_diffusion_3.family import CAPTION
from stagecoach.models.trainable import freeze
from tests.models.stable_diffusion_3.conftest import FAMILY

TRAINING = Progress(3, 10, 1, 0)


def test_every_lora_matrix_trains_and_gets_a_gradient(network, config, batch):
    """The text's queries of the last block go nowhere, so they have no LoRA."""
    freeze(network, FAMILY.stages(config)[0])
    network(batch, TRAINING)["losses"]["flow_matching"].sum().backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    # Two blocks of 8 layers; the last has no layer behind its text.
    assert len(trained) == 2 * (8 + 6)
    assert all("lora_" in name for name in trained)
    assert all(p.grad is not None and p.grad.any() for p in trained.values())


def test_the_loss_is_of_a_logit_normal_noise_level_moved_by_the_shift(network, batch):
    """SD3 section 3.1 and 5.3.2: sigma = 3 u / (1 + 2 u), u = sigmoid(n)."""
    keys = {"uid": torch.arange(4000), "rng_key": torch.arange(4000)}
    sigma = network.process.draw(keys, "level")
    u = sigma / (3 - 2 * sigma)
    normal = u.logit()
    assert float(normal.mean()) == pytest.approx(0, abs=0.06)
    assert float(normal.std()) == pytest.approx(1, abs=0.06)


@torch.no_grad()
def test_the_loss_is_the_error_in_velocity_of_each_sample_whatever_else_is_in_the_batch(network, batch):
    losses = network(batch, TRAINING)["losses"]["flow_matching"]
    assert losses.shape == (3,)
    alone = {name: value[1:2] for name, value in batch.items() if torch.is_tensor(value)}
    torch.testing.assert_close(network(alone, TRAINING)["losses"]["flow_matching"], losses[1:2], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_caption_matters_and_one_that_is_withheld_does_not(network, config, batch):
    x, t = torch.randn(batch["latent"].shape, generator=torch.Generator().manual_seed(0)), torch.full((3,), 500.0)
    swapped = batch | {name: batch[name].flip(0) for name in CAPTION}
    assert not torch.allclose(network.predict(batch, x, t)[0], network.predict(swapped, x, t)[0], atol=1e-5)
    assert network.predict(withheld(batch, CAPTION), x, t).equal(network.predict(withheld(swapped, CAPTION), x, t))


@torch.no_grad()
def test_captions_are_withheld_while_training_only(network, batch):
    network.config = network.config.model_copy(update={"caption_dropout": 0.999})
    held_out = Progress(3, 10, 1, 0, training=False)
    without = withheld(batch, CAPTION)
    assert network(batch, TRAINING)["losses"]["flow_matching"].equal(
        network(without, TRAINING)["losses"]["flow_matching"]
    )
    assert not network(batch, held_out)["losses"]["flow_matching"].equal(
        network(without, held_out)["losses"]["flow_matching"]
    )
