"""LoRA trained here and loaded by diffusers' FluxPipeline changes its output as it did in training."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from stagecoach.models.common.lora import lora_state
from stagecoach.models.family import Progress
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from stagecoach.models.movie_post_production.layout.instances import make_instances
from stagecoach.models.movie_post_production.network import pack, unpack
from stagecoach.models.movie_post_production.step import predict, without_references
from stagecoach.models.trainable import trainable_names
from stagecoach.models.weights import AdapterCard
from stagecoach.trainer.adapter import write_adapter
from stagecoach.trainer.export import export_adapter

FAMILY = MoviePostProductionFamily()
RUNNING = Progress(5, 10, 1, 0, training=False)


def pipeline_for(network, config: MoviePostConfig) -> FluxPipeline:
    """FluxPipeline around a transformer of the same frozen weights."""
    transformer = FluxTransformer2DModel(**config.backbone.diffusers())
    frozen = {
        name.replace("base_layer.", ""): p.detach() for name, p in network.state_dict().items() if "lora_" not in name
    }
    found = transformer.load_state_dict(frozen, strict=False)
    assert not found.missing_keys
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def flux_velocity(pipe: FluxPipeline, batch: dict, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    h, w = (side // 2 for side in x_t.shape[-2:])
    ids = FluxPipeline._prepare_latent_image_ids(len(x_t), h, w, "cpu", torch.float32)
    out = pipe.transformer(
        hidden_states=pack(x_t),
        encoder_hidden_states=batch["t5"].float(),
        pooled_projections=batch["pooled"].float(),
        timestep=t,
        img_ids=ids,
        txt_ids=torch.zeros(batch["t5"].shape[1], 3),
        guidance=torch.ones_like(t),
    ).sample
    return unpack(out, h, w)


def scoped(config: MoviePostConfig, scope: str) -> MoviePostConfig:
    values = config.model_dump()
    values["lora"] |= {"scope": scope, "alpha": 6.0}
    return MoviePostConfig.model_validate(values)


def adapter_of(network, config: MoviePostConfig, folder):
    names = trainable_names(network, FAMILY.stages(config)[0])
    tensors = {name: p.detach().clone() for name, p in network.named_parameters() if name in names}
    card = AdapterCard(
        "movie_post_production", "tiny", 1, "layout", 1, "recipe", "base", None, "raw", config.model_dump(mode="json")
    )
    write_adapter(folder, tensors, card)
    return folder


@torch.no_grad()
def test_a_pipeline_with_the_exported_lora_paints_what_the_trained_network_paints(
    config, make_network, make_batch, tmp_path
):
    """Scope global, a scale that is not 1, through launch/export.py's function, the file and load_lora_weights."""
    config = scoped(config, "global")
    network = make_network(1, moved=True, changed=config)
    batch = make_batch([0, 1])
    generator = torch.Generator().manual_seed(3)
    x_t, t = torch.randn(batch["latent"].shape, generator=generator), torch.tensor([0.25, 0.75])
    instances = without_references(make_instances(batch, config, RUNNING))
    trained = predict(network, batch, instances, x_t, t, 1.0, RUNNING)["velocity"]
    pipe = pipeline_for(network, config)
    plain = flux_velocity(pipe, batch, x_t, t)

    adapter = adapter_of(network, config, tmp_path / "adapter")
    metadata = export_adapter(adapter, tmp_path / "lora.safetensors", "fp32", "diffusers-lora")
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    found = flux_velocity(pipe, batch, x_t, t)
    assert metadata["layout"] == "diffusers-lora"
    assert torch.allclose(found, trained, atol=1e-5)
    assert (found - plain).abs().max() > 100 * (found - trained).abs().max()
    assert (found - plain).abs().max() > 1e-3


@torch.no_grad()
def test_lora_that_was_active_in_boxes_alone_is_refused_as_a_pipeline_would_compute_something_else(
    config, make_network, make_batch, tmp_path
):
    """Without references the trained network is FLUX; a pipeline with the LoRA is not."""
    config = scoped(config, "layout_branch")
    network = make_network(1, moved=True, changed=config)
    batch = make_batch([0, 1])
    x_t = torch.randn(batch["latent"].shape, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.25, 0.75])
    instances = without_references(make_instances(batch, config, RUNNING))
    trained = predict(network, batch, instances, x_t, t, 1.0, RUNNING)["velocity"]
    pipe = pipeline_for(network, config)
    assert torch.allclose(flux_velocity(pipe, batch, x_t, t), trained, atol=1e-5)
    save_file(lora_state(network), tmp_path / "lora.safetensors")
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    assert (flux_velocity(pipe, batch, x_t, t) - trained).abs().max() > 1e-3

    adapter = adapter_of(network, config, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"active inside boxes alone \(lora\.scope: layout_branch\)"):
        export_adapter(adapter, tmp_path / "refused.safetensors", "fp32", "diffusers-lora")
    assert not (tmp_path / "refused.safetensors").exists()


def test_an_adapter_without_lora_is_refused(config):
    with pytest.raises(ValueError, match=r"lacks .* LoRA tensors"):
        FAMILY.diffusers_lora(scoped(config, "global"), 1, {})


def test_the_exported_file_holds_lora_alone(config, make_network, tmp_path):
    config = scoped(config, "global")
    network = make_network(1, changed=config)
    adapter = adapter_of(network, config, tmp_path / "adapter")
    export_adapter(adapter, tmp_path / "lora.safetensors", "bf16", "diffusers-lora")
    found = load_file(tmp_path / "lora.safetensors")
    assert all(name.startswith("transformer.") and ".lora_" in name for name in found)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
