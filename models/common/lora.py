"""LoRA inside a frozen base (arXiv 2106.09685), made by peft, and its tensors as diffusers' pipelines load them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from stagecoach.models.common.config import Section
from stagecoach.models.common.materialise import keyed_init
from stagecoach.models.common.reduce import Measured, sum_count

ADAPTER = "default"
Path = Callable[[nn.Module], nn.Module]
"""From a layer to what is called in its stead: ``plain`` or ``adapted``."""
MATRICES = ("lora_A", "lora_B")
PREFIX = "transformer."
"""What a pipeline's LoRA file calls the denoiser."""


class LoraSection(Section):
    """LoRA of ``rank`` and scale ``alpha / rank`` on the linear layers whose names end with one of ``targets``."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(16, gt=0)
    targets: tuple[str, ...] = ()


def targets_among(known: Iterable[str]) -> AfterValidator:
    """For the annotation of a ``LoraSection``: its targets are some of ``known``, each once, and at least one."""

    def check(section: LoraSection) -> LoraSection:
        targets = section.targets
        if not targets or len(set(targets)) != len(targets) or not set(targets) <= set(known):
            raise ValueError(
                f"lora.targets is {list(targets)}, expected at least one of {sorted(set(known))}, each once"
            )
        return section

    return AfterValidator(check)


def find_targets(base: nn.Module, targets: Iterable[str]) -> list[str]:
    """Names of the linear layers of ``base`` that end with one of ``targets``, by whole parts (``attn.to_q``). Raises
    ``ValueError`` naming a target that no layer has."""
    layers = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise ValueError(
                f"LoRA target {target!r} names no linear layer of {type(base).__name__}, expected the end of a name "
                f"such as {layers[-1]!r}"
            )
    return [name for name in layers if any(f".{name}".endswith(f".{target}") for target in targets)]


def lora_patterns(names: Iterable[str], inside: str = "") -> tuple[str, ...]:
    """Patterns that together name each LoRA matrix of the layers ``names`` once, for the declaration of a stage; the
    number of a block becomes ``*``. ``inside``: what comes before each name."""
    layers = {re.sub(r"\.\d+\.", ".*.", f"{inside}{name}", count=1) for name in names}
    return tuple(f"{layer}.{matrix}" for layer in sorted(layers) for matrix in MATRICES)


def inject_lora(
    base: nn.Module, names: Sequence[str], rank: int, alpha: float, device: torch.device | str = "cpu"
) -> None:
    """Wrap the layers ``names`` of ``base`` (on the meta device) in place. A starts Kaiming-uniform and B at zero, in
    fp32 on ``device``, at values that depend on the layer's name only."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names), bias="none")  # type: ignore[arg-type]
    inject_adapter_in_model(config, base, ADAPTER, low_cpu_mem_usage=True)
    for name in names:
        layer: Any = base.get_submodule(name)
        with keyed_init(f"lora.{name}", device):
            layer.lora_A[ADAPTER] = nn.Linear(layer.in_features, rank, bias=False)
            layer.lora_B[ADAPTER] = nn.Linear(rank, layer.out_features, bias=False)
            nn.init.zeros_(layer.lora_B[ADAPTER].weight)


def add_lora(base: nn.Module, section: LoraSection, device: torch.device | str, skip: Iterable[str] = ()) -> None:
    """LoRA as ``section`` says in all its targets but the layers ``skip``, by ``inject_lora``."""
    names = [name for name in find_targets(base, section.targets) if name not in set(skip)]
    inject_lora(base, names, section.rank, section.alpha, device)


def lora_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of ``network`` that have LoRA (``LoraLayer``), by name."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


@contextmanager
def base_alone(network: nn.Module) -> Iterator[None]:
    """Inside, LoRA adds zeros. Its layers are called as before, so that ZeRO's ranks stay in step."""
    scales = [(layer, layer.scaling[ADAPTER]) for _, layer in lora_layers(network)]
    try:
        for layer, _ in scales:
            layer.scaling[ADAPTER] = 0.0
        yield
    finally:
        for layer, scale in scales:
            layer.scaling[ADAPTER] = scale


def with_and_without_lora(
    network: nn.Module, name: str, measure: Callable[..., Tensor], *given: Any
) -> dict[str, Measured]:
    """``measure(*given)``, summed and counted, as the metric ``name``, and of the base alone as its baseline."""
    with base_alone(network):
        baseline = sum_count(measure(*given))
    return {name: sum_count(measure(*given)), f"{name}_baseline": baseline}


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """LoRA of ``network`` as ``load_lora_weights`` of a pipeline takes it. The scale is in B, so that no alpha needs to
    go with it. The base may be the network itself or its child ``transformer``."""
    state = {}
    for name, layer in lora_layers(network):
        key = PREFIX + name.removeprefix(PREFIX)
        state[f"{key}.lora_A.weight"] = layer.lora_A[ADAPTER].weight.detach()
        state[f"{key}.lora_B.weight"] = layer.lora_B[ADAPTER].weight.detach() * layer.scaling[ADAPTER]
    return state


def export_lora(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``lora_state`` of ``network`` (on the meta device) with the values of an adapter's ``tensors``, empty where it
    has no LoRA. Raises ``ValueError`` where the tensors do not hold all of it."""
    network.load_state_dict(dict(tensors), strict=False, assign=True)
    state = lora_state(network)
    missing = sorted(name for name, tensor in state.items() if tensor.is_meta)
    if missing:
        raise ValueError(
            f"the adapter lacks {len(missing)} LoRA tensors ({missing[0]}, ...), expected all that its "
            "config describes; was it exported from another size?"
        )
    return state


def has_lora(layer: nn.Module) -> bool:
    """Whether peft wrapped the layer."""
    return isinstance(layer, LoraLayer)


def plain(layer: nn.Module) -> nn.Module:
    """The frozen layer, without its LoRA."""
    return layer.get_submodule("base_layer") if has_lora(layer) else layer


def adapted(layer: nn.Module) -> nn.Module:
    """The layer with its LoRA, where it has one."""
    return layer
