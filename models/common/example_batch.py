"""Random batches in the shapes of a schema, for benchmarks, tests and the planner."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.models.common.keyed import rng_keys

TORCH_DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "u8": torch.uint8,
    "u16": torch.uint16,
    "i64": torch.int64,
    "image": torch.uint8,
}
"""The dtype in a batch of a field's dtype in the schema."""


def random_batch(
    schema: SampleSchema,
    sizes: Mapping[str, int],
    samples: int,
    device: torch.device | str,
    seed: int,
    stage: int,
    host: Collection[str] = (),
) -> dict[str, Any]:
    """Make a batch of ``samples`` with every field that ``schema`` requires, standard normal (integers: 0 to 9).

    Args:
        schema: names, dtypes and shapes of the fields.
        sizes: length of each named dimension of the schema.
        samples: B, the first dimension of every tensor.
        device: where the batch is made. On the meta device tensors have shapes and no values.
        seed: batches of different seeds differ, and hold samples of different positions in the global order.
        stage: what the keys of the samples' random numbers are made for.
        host: fields that are made on the CPU where ``device`` is meta, since a step reads their values.
    """
    device = torch.device(device)
    generators = {kind: torch.Generator(kind).manual_seed(seed) for kind in {"cpu", device.type} - {"meta"}}
    batch: dict[str, Any] = {}
    for field in schema.fields:
        if not field.optional:
            where = torch.device("cpu") if field.name in host and device.type == "meta" else device
            batch[field.name] = _random(field, sizes, samples, where, generators.get(where.type))
    uids = list(range(seed * samples, (seed + 1) * samples))
    return batch | {
        "uid": torch.tensor(uids, device=device),
        "key": [f"random{uid}" for uid in uids],
        "rng_key": rng_keys(seed, stage, uids),
    }


def _random(
    field: Field, sizes: Mapping[str, int], samples: int, device: torch.device, generator: torch.Generator | None
) -> torch.Tensor:
    """Make the tensor of one field; ``generator`` is None on the meta device."""
    shape = [samples, *(dim if isinstance(dim, int) else sizes[dim] for dim in field.shape)]
    dtype = TORCH_DTYPES[field.dtype]
    if generator is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    return torch.randint(0, 10, shape, generator=generator, device=device, dtype=dtype)
