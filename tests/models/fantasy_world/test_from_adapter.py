"""Pipelines of trained weights, as the trainer leaves them."""

import pytest
import torch

from stagecoach import FantasyWorldPipeline
from stagecoach.models.common.keyed import request_generators
from stagecoach.trainer.export import export_adapter
from tests.models.fantasy_world.inputs import make_inputs
from tests.models.weights.held import hold


@pytest.fixture(scope="module")
def held(tiny, tmp_path_factory):
    return hold(tmp_path_factory.mktemp("run"), "fantasy_world", config=tiny)


def draw(pipeline, config):
    pipeline.set_progress_bar_config(disable=True)
    inputs = make_inputs(config, 1)
    return pipeline(
        prompt_embeds=inputs["text"],
        cameras=inputs["extrinsics"][0],
        intrinsics=inputs["intrinsics"][0],
        num_inference_steps=2,
        generator=request_generators(0, "a", [0]),
        output_type="latent",
    )


def test_adapter_checkpoint_and_exported_file_draw_the_same_video(held, tiny, tmp_path):
    file = tmp_path / "adapter.safetensors"
    export_adapter(held.adapter, file, "fp32")
    pipelines = [FantasyWorldPipeline.from_adapter(source) for source in (held.adapter, held.checkpoint, file)]
    first, *others = [draw(pipeline, tiny) for pipeline in pipelines]
    for found in others:
        assert torch.equal(found.frames, first.frames)
        assert torch.equal(found.depth, first.depth)
    average = draw(FantasyWorldPipeline.from_adapter(held.checkpoint, which="ema"), tiny)
    base = draw(FantasyWorldPipeline.from_adapter(None, base=tiny.base, size="tiny"), tiny)
    for other in (average, base):
        assert not torch.allclose(other.frames, first.frames, atol=1e-3)


def test_weights_of_stage_one_read_the_geometry_of_the_video_that_the_base_makes(held, tiny):
    early = draw(FantasyWorldPipeline.from_adapter(held.run / "stage1" / "adapter"), tiny)
    base = draw(FantasyWorldPipeline.from_adapter(None, base=tiny.base, size="tiny"), tiny)
    assert torch.equal(early.frames, base.frames)
    assert not torch.allclose(early.depth, base.depth, rtol=1e-2)


def test_weights_of_another_base_or_family_are_refused(held, tmp_path, base_folders):
    with pytest.raises(ValueError, match="num_attention_heads is 2"):
        FantasyWorldPipeline.from_adapter(held.adapter, base=base_folders["aggregator"])
    other = hold(tmp_path, "stable_diffusion_3")
    with pytest.raises(ValueError, match="family stable_diffusion_3, expected fantasy_world"):
        FantasyWorldPipeline.from_adapter(other.adapter)


def test_half_precision_draws_nearly_the_same_video(held, tiny):
    whole = draw(FantasyWorldPipeline.from_adapter(held.adapter), tiny).frames
    half = draw(FantasyWorldPipeline.from_adapter(held.adapter, dtype=torch.bfloat16), tiny).frames
    assert (half - whole).abs().mean() < 0.1 * whole.abs().mean()
    assert not torch.equal(half, whole)
