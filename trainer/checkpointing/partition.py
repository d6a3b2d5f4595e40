"""What ZeRO keeps of each trained parameter on this rank: fragments of flat fp32 partitions, and Adam's state of them.

All three stages keep flat partitions and differ in which elements lie where. A checkpoint that names these elements is
read into any of them, by any number of ranks.
"""

from collections.abc import Mapping
from typing import Any

import deepspeed
import torch

from stagecoach.trainer.checkpointing.layout import MOMENTS, Fragment
from stagecoach.trainer.engine import master_partitions

SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What of a loss scaler changes in training."""


def find_fragments(engine: deepspeed.DeepSpeedEngine, parameters: Mapping[str, Any]) -> dict[str, Fragment]:
    """Fragments of ``parameters`` on this rank, by name; those that lie on other ranks alone are left out."""
    optimizer, found = engine.optimizer, {}
    for name, parameter in parameters.items():
        if hasattr(parameter, "ds_id"):
            group, offset, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = share * optimizer._get_param_partition_rank(parameter)
            fragment = Fragment(group, offset, start, max(0, min(share, parameter.ds_numel - start)))
        elif (mapping := getattr(parameter, "_hp_mapping", None)) is not None:
            own, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
            fragment = Fragment(mapping.param_group_index, own.start, whole.start, own.numel)
        else:
            continue
        if fragment.numel:
            found[name] = fragment
    return found


def adam_states(engine: deepspeed.DeepSpeedEngine) -> list[dict[str, Any]]:
    """State of torch's AdamW, FusedAdam or DeepSpeedCPUAdam for each flat partition: ``step`` and ``MOMENTS``. It is
    made where no step has been taken yet."""
    optimizer = engine.optimizer.optimizer
    states = []
    for flat in master_partitions(engine):
        state = optimizer.state[flat]
        if not state:
            state["step"] = torch.zeros(()) if isinstance(optimizer, torch.optim.AdamW) else 0
            state.update({name: torch.zeros_like(flat.detach()) for name in MOMENTS})
        states.append(state)
    return states


def adam_steps(engine: deepspeed.DeepSpeedEngine) -> int:
    """Updates that Adam has made; skipped steps are none."""
    return max(int(state["step"]) for state in adam_states(engine))


def set_adam_steps(engine: deepspeed.DeepSpeedEngine, steps: int) -> None:
    for state in adam_states(engine):
        # A tensor for each partition: torch's AdamW counts in place.
        state["step"] = torch.full_like(state["step"], steps) if torch.is_tensor(state["step"]) else steps


def loss_scaler_state(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {name: getattr(scaler, name) for name in SCALE if getattr(scaler, name, None) is not None}


def set_loss_scaler_state(engine: deepspeed.DeepSpeedEngine, values: Mapping[str, float]) -> None:
    for name in SCALE:
        if name in values:
            setattr(engine.optimizer.loss_scaler, name, values[name])
