"""What is in a set of shards: counts, bytes, how sizes and lengths are spread, and what its samples look like."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.builders import builder, describe_statistics
from stagecoach.data.format.index import read_index
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.maintenance.check import built_schema, find_sets
from stagecoach.data.pictures import sheet
from stagecoach.data.progress import Track, untracked
from stagecoach.data.streaming.dataset import ShardSet

LOOKED_AT = 16
"""Samples of a split whose numbers are read, spread over it."""
BINS = 12
"""Most rows of a histogram."""


def inspect(directory: Path, track: Track = untracked) -> dict[str, dict[str, Any]]:
    """By split: schema, counts, bytes by field, histograms of the bytes of a sample and of each named dimension of the
    schema, what the statistics say, encoders, fingerprint. Read from manifest, indices and
    ``LOOKED_AT`` samples. Raises ``DamagedError`` or ``SchemaError`` naming a bad one."""
    return {name: _inspect(path, track) for name, path in find_sets(directory).items()}


def _inspect(path: Path, track: Track) -> dict[str, Any]:
    manifest = read_manifest(path)
    schema = built_schema(manifest)
    fields: Counter[str] = Counter()
    weights: Counter[int] = Counter()
    sizes: dict[str, Counter[int]] = {dim: Counter() for dim in schema.dims}
    for entry in track(manifest.shards, f"reading {path.name}", len(manifest.shards)):
        index = read_index(path, entry)
        for row in index["samples"]:
            for member, (_, size, _) in row["members"].items():
                fields[member.partition(".")[0]] += size
            weights[sum(size for _, size, _ in row["members"].values())] += 1
            for dim, size in zip(index.get("dims", ()), row.get("sizes", ()), strict=True):
                if size is not None and dim in sizes:
                    sizes[dim][size] += 1
    return {
        "schema": schema.name,
        "version": schema.version,
        "samples": sum(entry["samples"] for entry in manifest.shards),
        "shards": len(manifest.shards),
        "bytes": sum(entry["bytes"] for entry in manifest.shards),
        "field_bytes": dict(sorted(fields.items())),
        "latent_std": latent_std(ShardSet.open(path, schema)),
        "sample_bytes": histogram(weights),
        "dims": {dim: histogram(counts) for dim, counts in sizes.items()},
        "described": describe_statistics(schema.name, manifest.statistics),
        "encoders": manifest.encoders,
        "heads": manifest.heads,
        "dropped": manifest.dropped,
        "lost": list(manifest.lost),
        "fingerprint": manifest.fingerprint,
    }


def latent_std(shards: ShardSet) -> dict[str, list[float]]:
    """Of each field of latents the standard deviation of each channel, over up to ``LOOKED_AT`` samples: about 1 where
    latents are scaled as networks are trained with. Raises as ``ShardSet.read``."""
    axes = {
        spec.name: next(axis for axis, size in enumerate(spec.shape) if isinstance(size, int))
        for spec in shards.schema.fields
        if "latent" in spec.name and any(isinstance(size, int) for size in spec.shape)
    }
    sums: dict[str, np.ndarray] = {}
    for number in np.linspace(0, len(shards) - 1, min(LOOKED_AT, len(shards))).round().astype(int).tolist():
        arrays = shards.read(number).arrays
        for name in axes.keys() & arrays.keys():
            values = arrays[name]
            if shards.schema.field(name).dtype == "bf16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            channels = np.moveaxis(values, axes[name], 0).reshape(values.shape[axes[name]], -1).astype(np.float64)
            counts = np.full(len(channels), channels.shape[1], np.float64)
            sums[name] = sums.get(name, 0) + np.stack([counts, channels.sum(1), (channels**2).sum(1)])
    found = {}
    for name, (count, total, squares) in sorted(sums.items()):
        found[name] = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0)).round(4).tolist()
    return found


def histogram(counts: Counter[int]) -> dict[str, Any] | None:
    """``min``, ``mean``, ``max``, and ``bins`` of [low, high, samples], both ends included: one for each size where
    there are at most ``BINS``, else ``BINS`` of equal width. None for no sample."""
    if not counts:
        return None
    low, high, total = min(counts), max(counts), sum(counts.values())
    if len(counts) <= BINS:
        bins = [[size, size, counts[size]] for size in sorted(counts)]
    else:
        edges = np.linspace(low, high + 1, BINS + 1).astype(np.int64).tolist()
        bins = [
            [first, after - 1, sum(n for size, n in counts.items() if first <= size < after)]
            for first, after in pairwise(edges)
        ]
    return {"min": low, "mean": sum(size * n for size, n in counts.items()) / total, "max": high, "bins": bins}


def contact_sheet(directory: Path, count: int, columns: int = 2) -> np.ndarray:
    """Pictures of up to ``count`` samples, spread evenly over the splits, uint8 [h, w, 3]."""
    samples = []
    for path in find_sets(directory).values():
        manifest = read_manifest(path)
        shards, family = ShardSet.open(path, built_schema(manifest)), builder(manifest.schema["name"])
        samples += [(shards, family, index) for index in range(len(shards))]
    chosen = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    shown = [samples[number] for number in chosen]
    return sheet([family.picture(shards.read(index)) for shards, family, index in shown], columns)
