"""Costs of the identity loss, against the figures of the page and a real run."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stagecoach.models.movie_post_production.config import SIZES, MoviePostConfig
from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from stagecoach.models.movie_post_production.helper_costs import identity_costs
from stagecoach.models.movie_post_production.identity.decode import make_decoder, make_dino

FAMILY = MoviePostProductionFamily()


def test_flux_and_dino_cost_what_the_page_says():
    """0.62 TFLOP and 0.76 GB per crop of 256 px, 0.162 TFLOP for DINOv2-L, 10.5 for a picture of 1024 px."""
    config = SIZES["flux-dev"]
    vae, dino = identity_costs(config)
    crops = config.losses.identity.crops
    assert vae.forward / crops == pytest.approx(0.62e12, rel=0.05)
    assert vae.activation_bytes / crops == pytest.approx(0.76e9, rel=0.25)
    assert dino.forward / crops == pytest.approx(0.162e12, rel=0.05)
    values = config.model_dump()
    values["losses"]["identity"]["decode"] = "full"
    assert identity_costs(MoviePostConfig.model_validate(values))[0].forward == pytest.approx(10.5e12, rel=0.05)


def test_counts_are_those_of_a_run():
    config = SIZES["tiny"]
    crops = config.losses.identity.crops
    decoder = make_decoder(config.vae, 16, "cpu", torch.float32, True)
    dino = make_dino(config.dino, 16, "cpu", torch.float32, True)
    with FlopCounterMode(display=False) as counter:
        dino(decoder(torch.zeros(crops, 16, 8, 8))[..., :28, :28])
    assert sum(row.forward for row in identity_costs(config)) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_with_the_loss_count_it(stage):
    names = [row.module for row in FAMILY.flops(SIZES["tiny"], stage)]
    assert ("identity.vae" in names) == (stage > 1)
