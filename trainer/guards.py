"""Proofs that a stage trains what it declares and nothing else."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stagecoach.models.family import StageSpec
from stagecoach.trainer.distributed import World
from stagecoach.trainer.freeze import may_lack_gradient


class GradientCheck:
    """Watches which trainable tensors get a non-zero gradient in the first steps of a stage.

    ZeRO reduces and drops gradients while the backward runs, so a tensor hook on each parameter looks at them as they
    come; what it keeps stays on the device until ``finish``. Steps whose update was skipped do not count: an infinite
    gradient times the zero of a closed gate is no zero.
    """

    def __init__(self, network: nn.Module, spec: StageSpec, world: World) -> None:
        self.spec, self.world = spec, world
        self.names = [name for name, p in network.named_parameters() if p.requires_grad]
        self.steps = 0
        self.seen = torch.zeros(len(self.names), dtype=torch.bool, device=world.device)
        self.now = torch.zeros_like(self.seen)
        trainable = (p for p in network.parameters() if p.requires_grad)
        self.hooks = [p.register_hook(self._watch(flag)) for p, flag in zip(trainable, self.now, strict=True)]

    def _watch(self, flag: Tensor):
        def hook(gradient: Tensor) -> None:
            flag.logical_or_(gradient.ne(0).any())

        return hook

    def after_step(self, applied: bool) -> None:
        if applied:
            self.steps += 1
            self.seen |= self.now
        self.now.zero_()

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def finish(self, step: int) -> None:
        """Raise ``ValueError`` naming each tensor that had no gradient on any rank in all steps up to ``step``, unless
        the stage allows it with ``AllowNoGradient``. Every rank calls it."""
        self.close()
        seen = self.seen.to(torch.int32)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        silent = [
            name
            for name, flag in zip(self.names, seen.tolist(), strict=True)
            if not flag and not may_lack_gradient(self.spec, name, step)
        ]
        if silent:
            more = f" and {len(silent) - 10} more" if len(silent) > 10 else ""
            raise ValueError(
                f"stage {self.spec.index} ({self.spec.name}): no gradient reached "
                f"{', '.join(silent[:10])}{more} in {self.steps} steps; train it for a loss, or name it in the "
                "stage's allow_no_gradient with a reason"
            )


@torch.no_grad()
def frozen_checksums(network: nn.Module) -> Tensor:
    """int64 ``[T, 2]`` on the CPU: for each frozen tensor (this rank's shard under ``frozen: shard``) the sum of its
    bits read as integers, and that of every other one."""
    rows = []
    for parameter in network.parameters():
        if parameter.requires_grad:
            continue
        tensor = getattr(parameter, "ds_tensor", parameter).detach().reshape(-1)
        bits = tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[tensor.element_size()])
        rows.append(torch.stack([bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)]))
    return torch.stack(rows).cpu() if rows else torch.zeros(0, 2, dtype=torch.int64)


def check_frozen(network: nn.Module, before: Tensor) -> None:
    """Raise ``ValueError`` naming the frozen tensors whose checksums differ from ``before``."""
    names = [name for name, p in network.named_parameters() if not p.requires_grad]
    after = frozen_checksums(network)
    changed = [name for name, a, b in zip(names, before.tolist(), after.tolist(), strict=True) if a != b]
    if changed:
        raise ValueError(
            f"{len(changed)} frozen tensors changed during the stage, first {', '.join(changed[:5])}; "
            "nothing may write into frozen weights"
        )
