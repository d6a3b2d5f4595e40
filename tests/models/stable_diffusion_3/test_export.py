"""LoRA trained here and loaded by diffusers' StableDiffusion3Pipeline changes its pictures as it did in training."""

from __future__ import annotations

import pytest
import torch

from stagecoach.models.common.keyed import keyed_randn
from stagecoach.models.common.noise import denoise
from stagecoach.models.trainable import trainable_names
from stagecoach.models.weights import AdapterCard
from stagecoach.trainer.adapter import write_adapter
from stagecoach.trainer.export import export_adapter
from tests.models.stable_diffusion_3.conftest import FAMILY

STEPS = 3


@pytest.fixture
def pipe(network, config, tiny, tmp_path):
    """The pipeline with the network's LoRA, by way of an adapter, the exported file and ``load_lora_weights``."""
    names = trainable_names(network, FAMILY.stages(config)[0])
    tensors = {name: p.detach().clone() for name, p in network.named_parameters() if name in names}
    card = AdapterCard(FAMILY.name, "tiny", 1, "lora", 1, "recipe", "base", None, "raw", config.model_dump(mode="json"))
    write_adapter(tmp_path / "adapter", tensors, card)
    export_adapter(tmp_path / "adapter", tmp_path / "lora.safetensors", "fp32", "diffusers-lora")
    pipe = tiny.pipeline()
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_the_pipelines_transformer_predicts_what_the_trained_network_predicts(network, pipe, batch):
    x, t = torch.randn(batch["latent"].shape, generator=torch.Generator().manual_seed(3)), torch.tensor([250.0, 500, 1])
    trained = network.predict(batch, x, t)
    given = {"encoder_hidden_states": batch["prompt_embeds"].float(), "pooled_projections": batch["pooled"].float()}
    found = pipe.transformer(hidden_states=x, timestep=t, **given).sample
    torch.testing.assert_close(found, trained, atol=1e-5, rtol=0)
    pipe.disable_lora()
    plain = pipe.transformer(hidden_states=x, timestep=t, **given).sample
    assert (plain - trained).abs().max() > 1e-3


@torch.no_grad()
def test_the_whole_pipeline_paints_what_a_preview_without_guidance_paints(network, pipe, batch):
    """From the caption's text to latents: the same encoders, noise levels and solver."""
    noise = keyed_randn(batch, "preview", batch["latent"].shape[1:])[:1]
    one = {name: value[:1] for name, value in batch.items() if name in ("prompt_embeds", "pooled")}
    ours = denoise(network.process, lambda x, t, k: network.predict(one, x, t), noise, STEPS)
    theirs = pipe(
        prompt_embeds=one["prompt_embeds"].float(),
        pooled_prompt_embeds=one["pooled"].float(),
        latents=noise,
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        sigmas=torch.linspace(1, 1 / STEPS, STEPS).tolist(),
        height=64,
        width=64,
        output_type="latent",
    ).images
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
