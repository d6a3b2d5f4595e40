"""Stage B under ZeRO-3 on two ranks: a reference net that trains in part, and a denoiser that is recomputed."""

import json
from pathlib import Path

import pytest
import torch

STEPS, RATE = 3, 0.1
ZERO3 = Path(__file__).parents[2] / "ds_configs" / "zero3.json"


@pytest.fixture(scope="module")
def expected():
    return plain()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "frozen"), [("none", "replicate"), ("selective", "replicate"), ("full", "replicate"), ("full", "shard")]
)
def test_a_partly_frozen_reference_net_and_recompute_give_the_losses_and_weights_of_plain_pytorch(
    pair, expected, policy, frozen
):
    """The reference's tokens leave its blocks from their middles; recompute and partitioning may not break on it."""
    (losses, weights), other = pair.run(partitioned, policy, frozen)
    assert other[0] == losses
    assert losses == pytest.approx(expected[0], rel=1e-6)
    assert losses[-1] < losses[0]
    assert weights.keys() == expected[1].keys()
    start = dict(make_trained()[0].named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[1][name], rtol=0, atol=1e-6, msg=name)
    for part in ("reference_unet.up_blocks.0", "reference_unet.conv_in", "denoising_unet.up_blocks.1", "guidance"):
        assert any(not torch.equal(weights[name], start[name]) for name in weights if name.startswith(part)), part
    assert not any(name.startswith("reference_unet.up_blocks.1") for name in weights)


def make_trained():
    """The tiny network of stage B, trained as the stage says but for MusicToPose, which no denoising calls."""
    from stagecoach.models.dance_with_music.stages import make_stages
    from stagecoach.models.trainable import freeze
    from tests.models.dance_with_music.champ_inputs import TINY, make_network, open_zeros

    network = open_zeros(make_network())
    freeze(network, make_stages(TINY)[1])
    network.m2p.requires_grad_(False)
    return network, {name: p for name, p in network.named_parameters() if p.requires_grad}


def loss_of(network, samples: list[int], step: int) -> torch.Tensor:
    """Mean over ``samples`` of 0 and 1; the second one is without a reference in the last step."""
    from tests.models.dance_with_music.champ_inputs import make_conditions, make_noisy

    x, level = make_noisy(seed=step)
    conditions = make_conditions(seed=step)
    conditions["reference_given"] = torch.tensor([True, step < STEPS - 1])

    def pick(value):
        if isinstance(value, dict):
            return {name: pick(inner) for name, inner in value.items()}
        return value[samples] if isinstance(value, torch.Tensor) else value

    prediction = network.denoise(x[samples], level[samples], pick(conditions))
    return (prediction - x[samples]).square().mean()


def plain() -> tuple[list[float], dict[str, torch.Tensor]]:
    network, trained = make_trained()
    optimizer = torch.optim.SGD(trained.values(), lr=RATE, momentum=0.9)
    losses = []
    for step in range(STEPS):
        loss = loss_of(network, [0, 1], step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.detach().clone() for name, p in trained.items()}


def partitioned(policy: str, frozen: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same on two ranks, a sample on each; frozen weights whole on each or partitioned too."""
    import deepspeed
    import torch.distributed as dist

    from stagecoach.trainer.activation_checkpointing import apply_activation_checkpointing
    from stagecoach.trainer.distributed import start
    from stagecoach.trainer.engine import full_parameters
    from stagecoach.trainer.subset import engine_module

    world = start()
    network, trained = make_trained()
    assert apply_activation_checkpointing(network.recompute_units(), policy) == (0 if policy == "none" else 9)
    config = json.loads(ZERO3.read_text())
    # Everything is partitioned, and nothing kept for the next use.
    config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True}
    optimizer = torch.optim.SGD(trained.values(), lr=RATE, momentum=0.9)
    engine, *_ = deepspeed.initialize(model=engine_module(network, frozen), optimizer=optimizer, config=config)
    losses = []
    for step in range(STEPS):
        loss = engine(network, [world.rank], step, run=loss_of)
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / world.size)
    weights = full_parameters(engine, trained, keep=True)
    engine.destroy()
    return losses, weights
