"""Which file of an adapter a weight is written to: one per part, as the recipe's ``weights`` name them."""

from __future__ import annotations

import re

PARTS = (
    (r"m2p\..*", "m2p"),
    (r"guidance\.encoders\.(\w+)\..*", r"guidance_\1"),
    (r"face_tokens\..*", "face_tokens"),
    (r"reference_unet\..*", "reference_unet"),
    (r".*\.processor\.id_to_[kv]\..*", "identity_adapter"),
    (r"denoising_unet\..*\.motion_modules\..*", "motion"),
    (r"denoising_unet\..*", "denoising_unet"),
)


def part_of(name: str) -> str:
    """The part that the network's parameter ``name`` belongs to."""
    for pattern, part in PARTS:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(part)
    raise ValueError(
        f"parameter {name!r} belongs to no part of DanceWithMusic, expected a name below m2p, guidance, "
        "face_tokens, denoising_unet or reference_unet"
    )
