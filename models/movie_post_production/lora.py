"""LoRA inside the frozen backbone, made by peft, and its tensors in the layout that diffusers' pipelines load."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stagecoach.models.common.materialise import keyed_init
from stagecoach.models.movie_post_production.config import DOUBLE_TARGETS, SINGLE_TARGETS, MoviePostConfig

ADAPTER = "default"
OWN_PARTS = ("lora_A", "lora_B")


def target_layers(config: MoviePostConfig) -> list[str]:
    """Names of the linear layers that carry LoRA: those of the layout blocks, or of all."""
    lora, layout, backbone = config.lora, config.layout, config.backbone
    everywhere = lora.scope == "global"
    doubles = range(backbone.double_blocks) if everywhere else layout.double_blocks
    singles = range(backbone.single_blocks) if everywhere else layout.single_blocks
    kinds = (("transformer_blocks", doubles, DOUBLE_TARGETS), ("single_transformer_blocks", singles, SINGLE_TARGETS))
    return [
        f"{kind}.{i}.{_inside(target)}"
        for kind, blocks, known in kinds
        for i in blocks
        for target in lora.targets
        if target in known
    ]


def trainable_patterns(config: MoviePostConfig) -> tuple[str, ...]:
    """Patterns that together name each LoRA module once, for the declaration of a stage."""
    parts = {name.split(".", 2)[0] + ".*." + name.split(".", 2)[2] for name in target_layers(config)}
    return tuple(f"{layer}.{part}" for layer in sorted(parts) for part in OWN_PARTS)


def inject(base: FluxTransformer2DModel, config: MoviePostConfig, device: torch.device | str) -> None:
    """Wrap the target layers of ``base`` (on the meta device) in place. A starts Kaiming-uniform and B at zero, in fp32
    on ``device``, at values that depend on the layer's name only."""
    rank, names = config.lora.rank, target_layers(config)
    inject_adapter_in_model(
        PeftLoraConfig(r=rank, lora_alpha=config.lora.alpha, target_modules=names, bias="none"),
        base,
        ADAPTER,
        low_cpu_mem_usage=True,
    )
    for name in names:
        layer = base.get_submodule(name)
        with keyed_init(f"lora.{name}", device):
            layer.lora_A[ADAPTER] = nn.Linear(layer.in_features, rank, bias=False)
            layer.lora_B[ADAPTER] = nn.Linear(rank, layer.out_features, bias=False)
            nn.init.zeros_(layer.lora_B[ADAPTER].weight)


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """LoRA of ``network`` as ``FluxPipeline.load_lora_weights`` takes it; the scale is in B, so that no alpha needs to
    go with it. Of scope ``layout_branch`` a pipeline knows no branch: it applies them to its ordinary path."""
    state = {}
    for name, layer in lora_layers(network):
        state[f"transformer.{name}.lora_A.weight"] = layer.lora_A[ADAPTER].weight.detach()
        state[f"transformer.{name}.lora_B.weight"] = layer.lora_B[ADAPTER].weight.detach() * layer.scaling[ADAPTER]
    return state


def lora_layers(network: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _inside(target: str) -> str:
    """Where in a block a target stands."""
    return target if target.startswith(("norm", "ff", "proj")) else f"attn.{target}"
