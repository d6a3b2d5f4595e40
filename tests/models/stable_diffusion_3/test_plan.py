"""The default recipe is planned from the real step at full size, on the meta device."""

from __future__ import annotations

import pytest

from stagecoach.trainer.planning.meter import step_costs
from stagecoach.trainer.recipe import load_recipe
from stagecoach.trainer.stage_plan import StagePlan


def test_medium_at_1024_pixels_is_planned_with_its_flops_and_activations():
    plan = StagePlan.resolve(load_recipe(family="stable_diffusion_3"), 1)
    costs = step_costs(plan, 1)
    # 4,096 + 333 tokens in 24 blocks: 12 d^2 weights for each token, and attention among all of them.
    tokens, blocks, width = 4096 + 333, 24, 1536
    forward = 2 * tokens * blocks * 12 * width**2 + 4 * tokens**2 * blocks * width
    assert sum(row.forward.flops for row in costs.rows) == pytest.approx(forward, rel=0.02)
    assert costs.kept.boundaries == pytest.approx(2 * blocks * tokens * width, rel=1e-4)
    assert costs.kept.boundaries < costs.kept.full < costs.kept.selective < costs.kept.none
