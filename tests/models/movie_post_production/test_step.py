"""A training step: one number per sample, blind to padding, the same calls regardless of the boxes; what trains
moves."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.stages import make_stages
from stagecoach.models.movie_post_production.step import training_step
from stagecoach.models.trainable import freeze
from stagecoach.trainer.objective import weighted_total
from stagecoach.trainer.settings import overlay

PADDED = ("boxes", "depth", "clip", "dino", "object_text")


def padded(batch: dict, extra: int) -> dict:
    """The batch with ``extra`` more slots, whose vectors hold what no padding should: large numbers."""
    longer = dict(batch)
    for name in PADDED:
        value = batch[name]
        fill = 0 if name in ("boxes", "depth") else 7
        longer[name] = F.pad(value, (0, 0, 0, extra) if value.ndim == 3 else (0, extra), value=fill)
    return longer


def without_boxes(batch: dict) -> dict:
    return batch | {"boxes": torch.zeros_like(batch["boxes"])}


def gradients(network: torch.nn.Module, total: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_are_one_number_per_sample_whatever_else_is_in_the_batch(make_network, make_batch, progress, stage):
    """R14(m): micro-batches, ranks and accumulation may be cut in any way."""
    network = make_network(stage, moved=True)
    together = training_step(network, make_batch([0, 1, 2], stage), progress(stage))
    expected = {"flow_matching", "in_box", "alpha_prior"} | ({"dino_identity"} if stage > 1 else set())
    assert set(together["losses"]) == expected
    alone = [training_step(network, make_batch([i], stage), progress(stage)) for i in range(3)]
    for name, values in together["losses"].items():
        assert values.shape == (3,)
        assert torch.isfinite(values).all()
        assert torch.allclose(values, torch.cat([a["losses"][name] for a in alone]), rtol=1e-4, atol=1e-6), name
    for name, (total, count) in together["metrics"].items():
        assert sum(a["metrics"][name][1].item() for a in alone) == count.item(), name
        assert sum(a["metrics"][name][0].item() for a in alone) == pytest.approx(total.item(), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("stage", [1, 3])
def test_padding_changes_no_loss_no_metric_and_no_gradient(make_network, make_batch, config, progress, stage):
    """D9, R14(e)."""
    network = make_network(stage, moved=True)
    freeze(network, make_stages(config)[stage - 1])
    found = []
    for batch in (make_batch([0, 1], stage), padded(make_batch([0, 1], stage), 2)):
        output = training_step(network, batch, progress(stage))
        total = weighted_total(output["losses"], make_stages(config)[stage - 1], {}, progress(stage)).mean()
        found.append((output, gradients(network, total)))
    (plain, grads), (longer, longer_grads) = found
    for name, values in plain["losses"].items():
        assert torch.allclose(values, longer["losses"][name], rtol=1e-5, atol=1e-6), name
    for name, (total, count) in plain["metrics"].items():
        assert longer["metrics"][name][1] == count, name
        assert longer["metrics"][name][0].item() == pytest.approx(total.item(), rel=1e-4, abs=1e-5), name
    assert grads.keys() == longer_grads.keys()
    for name, gradient in grads.items():
        assert torch.allclose(gradient, longer_grads[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_batch_without_boxes_calls_the_same_modules_and_reaches_the_same_tensors(
    make_network, make_batch, config, progress, stage
):
    """R14(n) on one rank, D20: no call depends on the data, so that no rank waits for another."""
    network = make_network(stage)
    freeze(network, make_stages(config)[stage - 1])
    calls: list[Counter] = []
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls[-1].update([name]))
    reached = []
    empty = make_batch([0, 1], stage)
    for batch in (make_batch([0, 1], stage), without_boxes(empty), {**empty, **{k: empty[k][:, :0] for k in PADDED}}):
        calls.append(Counter())
        output = training_step(network, batch, progress(stage))
        total = weighted_total(output["losses"], make_stages(config)[stage - 1], {}, progress(stage)).mean()
        assert torch.isfinite(total)
        reached.append(set(gradients(network, total)))
    assert calls[0] == calls[1] == calls[2]
    assert reached[0] == reached[1] == reached[2]


def test_the_identity_loss_reaches_modulation_and_layout_and_is_zero_above_t_max(
    make_network, make_batch, config, progress
):
    """D7: it is called, and its gradient is not cut off."""
    spec = make_stages(config)[1]
    network = make_network(2, moved=True)
    freeze(network, spec)
    output = training_step(network, make_batch(range(6), 2), progress(2))
    loss = output["losses"]["dino_identity"]
    assert (loss > 0).any()
    found = gradients(network, loss.mean())
    for name in (
        "modulation_head.hidden.weight",
        "transformer_blocks.1.modulation.projection.weight",
        "transformer_blocks.0.layout_out.weight",
        "instance_encoder.fusion.0.weight",
    ):
        assert found[name].abs().sum() > 0, name
    values = config.model_dump()
    values["losses"]["identity"]["t_max"] = 1e-6
    never = make_network(2, moved=True, changed=MoviePostConfig.model_validate(values))
    output = training_step(never, make_batch(range(6), 2), progress(2))
    assert (output["losses"]["dino_identity"] == 0).all()
    assert output["metrics"]["dino_similarity_mean"][1] == 0


@pytest.mark.parametrize("t_max", [0.6, 1.0])
def test_the_identity_weight_counts_once_however_few_pictures_carry_its_loss(
    make_network, make_batch, config, progress, t_max
):
    """A picture below ``t_max`` has its loss over the share of such draws, 0.478 at this size; with t_max = 1, as in
    profile reference, its loss as it is. Which picture carries it is logged."""
    found = {}
    for limit in (1.0, t_max):
        values = config.model_dump()
        values["losses"]["identity"]["t_max"] = limit
        network = make_network(2, moved=True, changed=MoviePostConfig.model_validate(values))
        found[limit] = training_step(network, make_batch(range(8), 2), progress(2))
    plain, limited = found[1.0]["losses"]["dino_identity"], found[t_max]["losses"]["dino_identity"]
    carries = limited > 0
    assert 0 < carries.sum() <= (plain > 0).sum()
    assert (carries.sum() == (plain > 0).sum()) == (t_max == 1.0)
    torch.testing.assert_close(limited[carries], plain[carries] / (1.0 if t_max == 1.0 else 0.4784), rtol=1e-3, atol=0)
    total, count = found[t_max]["metrics"]["identity_share"]
    assert (total.item(), count.item()) == (carries.sum().item(), 8)


def profile_config(config: MoviePostConfig, profile: str) -> MoviePostConfig:
    """``config`` with the switches of the profile's recipe, its widths left as they are."""
    path = Path(__file__).resolve().parents[3] / "launch" / "recipes" / "movie_post_production" / f"{profile}.yaml"
    given = yaml.safe_load(path.read_text())["model"]
    for name in ("base", "vae", "dino"):
        del given[name]
    return MoviePostConfig.model_validate(overlay(config.model_dump(), given))


@pytest.mark.parametrize("profile", ["default", "reference"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_all_that_trains_moves_within_four_steps_and_nothing_else(
    make_network, make_batch, config, progress, stage, profile
):
    """R14(i) and (k); D5, D6 and D10: no dead part, no frozen LoRA; D4: the layout head of stage 1 is the one that is
    used, and does not train in stage 3."""
    config = profile_config(config, profile)
    spec = make_stages(config)[stage - 1]
    network = make_network(stage, changed=config)
    scales = freeze(network, spec)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    magnitude = []
    for step in range(4):
        output = training_step(network, make_batch(range(2 * step, 2 * step + 2), stage), progress(stage, step + 20))
        total = weighted_total(output["losses"], spec, {}, progress(stage, step + 20)).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if stage == 3:
            magnitude.append(output["metrics"]["feedback_magnitude"][0].item())
    idle = {"null_references.clip", "null_references.dino"}
    for name, parameter in network.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (name in scales and name not in idle), name
    if stage == 3:
        assert magnitude[0] == 0
        assert magnitude[2] > 0


def test_no_tensor_is_made_by_a_forward(make_network, make_batch, progress):
    """D11: what an optimizer was given at the start is all there is."""
    network = make_network(3)
    before = {name: id(p) for name, p in network.named_parameters()}
    training_step(network, make_batch([0, 1], 3), progress(3))
    assert {name: id(p) for name, p in network.named_parameters()} == before


def test_metrics_have_the_guides_names(make_network, make_batch, progress):
    output = training_step(make_network(3), make_batch([0, 1], 3), progress(3))
    assert {
        "alpha_mean",
        "alpha_fg_ratio",
        "dino_similarity_mean",
        "feedback_magnitude",
        "timestep_mean",
        "loss/reconstruction",
        "loss/dino_identity_weighted",
    } <= set(output["metrics"])
    total, count = output["metrics"]["alpha_mean"]
    assert total / count == pytest.approx(0.5)
    assert output["metrics"]["alpha_fg_ratio"][0] == count


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_in_bf16_gives_fp32_losses_near_those_of_fp32(make_network, make_batch, progress, stage):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        output = training_step(make_network(stage, moved=True, dtype=dtype), make_batch([0, 1], stage), progress(stage))
        found[dtype] = output["losses"]
    for name, values in found[torch.bfloat16].items():
        assert values.dtype == torch.float32
        assert torch.allclose(values, found[torch.float32][name], rtol=0.05, atol=0.02), name
