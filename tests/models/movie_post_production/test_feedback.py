"""What a block found in the boxes reaches the next block's modulation."""

import pytest
import torch

from stagecoach.models.movie_post_production.config import SIZES, FeedbackConfig
from stagecoach.models.movie_post_production.modulation import FeedbackBridge, box_means
from tests.models.movie_post_production.inputs import make_inputs, make_network, open_gates

TINY = SIZES["tiny"]


def test_means_are_over_the_tokens_of_each_box_and_let_the_gradient_through():
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    cover = torch.tensor([[[True, False, True, False], [False] * 4]])
    means = box_means(hidden, cover)
    torch.testing.assert_close(means[0, 0], hidden[0, [0, 2]].mean(0))
    assert not means[0, 1].any()
    means.sum().backward()
    assert torch.equal(hidden.grad[0, :, 0], torch.tensor([0.5, 0.0, 0.5, 0.0]))


@pytest.mark.parametrize("kind", ["low_rank", "full"])
def test_a_bridge_starts_at_nothing_does_not_see_size_and_learns_in_two_steps(kind):
    torch.manual_seed(0)
    bridge = FeedbackBridge(FeedbackConfig(kind=kind, rank=4), 16)
    found, target = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    assert not bridge(found).any()
    before = {name: p.clone() for name, p in bridge.named_parameters()}
    optimizer = torch.optim.AdamW(bridge.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        (bridge(found) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(p, before[name]) for name, p in bridge.named_parameters())
    torch.testing.assert_close(bridge(found), bridge(100 * found), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["low_rank", "full"])
def test_stage_three_feeds_every_block_but_the_first(kind):
    """D6, R14(k): nothing at first, something after a step, which reaches the output; the last double block has no
    bridge; only bridges move."""
    config = TINY.model_copy(update={"feedback": FeedbackConfig(kind=kind, rank=2)})
    network, inputs = make_network(config, 3), make_inputs(config)
    for name, parameter in open_gates_but_bridges(network):
        parameter.requires_grad_(".feedback." in name)
    assert [block.feedback is not None for block in network.transformer_blocks] == [True, True, True, False]
    before = {name: p.clone() for name, p in network.named_parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    first = network.predict(**inputs)
    assert not first["feedback"].any()
    for _ in range(3):
        network.predict(**inputs)["velocity"].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    last = network.predict(**inputs)
    assert (last["feedback"] > 0)[inputs["instances"]["valid"]].all()
    assert not torch.equal(last["velocity"], first["velocity"])
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".feedback." in name}


def open_gates_but_bridges(network):
    for name, parameter in network.named_parameters():
        if ".feedback." in name:
            parameter.requires_grad_(False)
    open_gates(network)
    return list(network.named_parameters())


def test_the_gradient_of_a_later_bridge_passes_through_what_an_earlier_one_caused():
    """Section 1.6: means are not detached."""
    network, inputs = open_gates(make_network(TINY, 3)), make_inputs(TINY)
    found = []
    network.transformer_blocks[1].feedback.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    out = []
    network.transformer_blocks[0].feedback.register_forward_hook(lambda _, args, result: out.append(result))
    network.predict(**inputs)
    (gradient,) = torch.autograd.grad(found[0].square().sum(), out[0])
    assert gradient.abs().max() > 0


def test_the_magnitude_is_the_mean_over_bridges_and_channels():
    network, inputs = open_gates(make_network(TINY, 3)), make_inputs(TINY)
    seen = []
    for block in network.transformer_blocks[:-1]:
        block.feedback.register_forward_hook(lambda _, args, result: seen.append(result))
    found = network.predict(**inputs)["feedback"]
    torch.testing.assert_close(found, torch.stack(seen).abs().mean((0, -1)))
    assert not found.requires_grad
    assert not make_network(TINY, 2).predict(**inputs)["feedback"].any()
