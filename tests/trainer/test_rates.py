"""Learning rates of groups that open late, and loss weights that step with them."""

import pytest
from torch import nn

from stagecoach.models.family import Progress, Schedule, Trainable, has_started
from stagecoach.trainer.engine import group_rate, learning_rate, parameter_groups
from stagecoach.trainer.recipe import StageRecipe, load_recipe

STAGE = StageRecipe(steps=10, global_batch=1, learning_rate=2.0, warmup_steps=2, schedule="linear")


def groups_of(start_fraction):
    network = nn.ModuleDict({"early": nn.Linear(2, 2), "late": nn.Linear(2, 2)})
    trained = {
        name: Trainable(name.split(".")[0], 0.5, start_fraction if "late" in name else 0.0)
        for name, _ in network.named_parameters()
    }
    recipe = load_recipe(family="fantasy_world", profile="tiny")
    return {group["name"]: group for group in parameter_groups(network, trained, recipe.optimizer)}


def test_what_opens_late_has_groups_of_its_own():
    assert set(groups_of(0.8)) == {
        "lr_x0.5_decay",
        "lr_x0.5_no_decay",
        "lr_x0.5_from_0.8_decay",
        "lr_x0.5_from_0.8_no_decay",
    }
    assert set(groups_of(0.0)) == {"lr_x0.5_decay", "lr_x0.5_no_decay"}


@pytest.mark.parametrize(("start_fraction", "first"), [(0.8, 8), (0.75, 8), (0.5, 5), (1.0, 10)])
def test_a_closed_group_has_rate_zero_and_then_warms_up_by_itself(start_fraction, first):
    group = groups_of(start_fraction)[f"lr_x0.5_from_{start_fraction:g}_decay"]
    rates = [group_rate(group, STAGE, step) for step in range(STAGE.steps)]
    assert rates[:first] == [0.0] * len(rates[:first])
    for since, step in enumerate(range(first, STAGE.steps)):
        assert rates[step] == pytest.approx(0.5 * learning_rate(STAGE, step) * min(1, (since + 1) / 2))
        assert rates[step] > 0


def test_a_group_that_is_open_from_the_start_follows_the_stage():
    group = groups_of(0.8)["lr_x0.5_decay"]
    assert [group_rate(group, STAGE, s) for s in range(10)] == [0.5 * learning_rate(STAGE, s) for s in range(10)]


@pytest.mark.parametrize("begin", [0.0, 0.3, 0.75, 0.8, 1.0])
def test_a_step_schedule_turns_where_the_learning_rate_opens(begin):
    weight = Schedule(0.0, 0.5, "step", begin)
    for step in range(11):
        expected = 0.5 if has_started(begin, step, 10) else 0.0
        assert weight.at(Progress(step, 10, 2, 0)) == expected
    assert [has_started(0.8, step, 10) for step in (7, 8)] == [False, True]
