import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stagecoach.models.fantasy_world.config import SIZES, ClipConfig, FantasyWorldConfig
from stagecoach.models.fantasy_world.family import FantasyWorldFamily
from stagecoach.models.fantasy_world.flops import cost_table

FAMILY = FantasyWorldFamily()


def inputs(config: FantasyWorldConfig, device: str = "meta") -> list:
    clip, (f, h, w) = config.clip, config.clip.latent
    extra = []
    with torch.device(device):
        if config.image_to_video:
            extra = [
                torch.zeros(1, config.backbone.in_channels - 16, f, h, w),
                torch.zeros(1, 257, config.backbone.image_dim),
            ]
        return [
            torch.randn(1, 16, f, h, w),
            torch.full((1,), 500.0),
            torch.randn(1, 7, config.backbone.text_dim),
            torch.eye(3, 4).expand(1, clip.frames, 3, 4),
            torch.tensor([90.0, 90.0, clip.width / 2, clip.height / 2]).expand(1, clip.frames, 4),
            torch.ones(1, dtype=torch.bool),
            torch.arange(config.frames_per_step).expand(1, -1),
            *extra,
        ]


@pytest.mark.parametrize(("size", "tolerance"), [("tiny", 0.01), ("wan2.1-1.3b", 0.02), ("wan2.1-14b", 0.02)])
@pytest.mark.parametrize("stage", [1, 2])
def test_forward_is_what_the_flop_counter_counts(size, tolerance, stage):
    config = SIZES[size]
    network = FAMILY.build(config, stage, "meta", torch.float32)
    with FlopCounterMode(display=False) as counter:
        network.predict(*inputs(config))
    counted = sum(row.forward for row in cost_table(config, stage))
    assert counted == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_stage_one_costs_no_more_than_the_estimate_it_is_held_against():
    config = SIZES["wan2.1-1.3b"]
    assert config.clip == ClipConfig(frames=81, height=336, width=592)
    training = sum(row.forward + row.backward for row in cost_table(config, 1) if not row.head)
    heads = 2 * 3 * 3.6e12  # two heads of 3.6 TFLOP forward, times three for training, are in the 255
    assert training <= 1.05 * (255e12 - heads)


def test_no_gradient_is_paid_for_before_the_bridge_in_stage_one_nor_for_frozen_weights_in_stage_two():
    config = SIZES["tiny"]
    first, second = ({row.module: row for row in cost_table(config, stage)} for stage in (1, 2))
    assert first["pcb"].backward == first["stem"].backward == 0
    assert "irg.video_block" not in first
    pcb = second["pcb"]
    assert pcb.backward == pcb.linear + 2.5 * pcb.attention
    geo = second["irg.geo_block"]
    assert geo.backward == 2 * geo.linear + 2.5 * geo.attention


@pytest.mark.parametrize("stage", [1, 2])
def test_activation_bytes_are_what_autograd_keeps(config, stage):
    config = config.model_copy(update={"clip": ClipConfig(frames=9, height=128, width=192)})
    network = FAMILY.build(config, stage, "cpu", torch.bfloat16)
    FAMILY.load_base(network, config, "cpu")
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()  # as an engine in bf16 does
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept.setdefault(storage.data_ptr(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.predict(*inputs(config, "cpu"))
    measured = sum(storage.nbytes() for storage in kept.values())
    assert sum(row.activation_bytes for row in cost_table(config, stage)) == pytest.approx(measured, rel=0.05)
