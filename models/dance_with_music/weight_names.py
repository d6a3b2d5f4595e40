"""Names in the weights that others publish -> names of our modules (None: we have no use for it).

- CHAMP (github.com/fudan-generative-vision/champ): ``denoising_unet.pth`` and ``reference_unet.pth`` have diffusers'
  names, ``motion_module.pth`` AnimateDiff's, ``guidance_encoder_dwpose.pth`` those of our ``skeleton`` encoder and
  transformers that CHAMP's forward never calls.
- AnimateDiff (github.com/guoyww/AnimateDiff): ``mm_sd_v15_v2.ckpt``; diffusers renames it in the same way.
- StableAnimator (github.com/Francis-Rings/StableAnimator): ``unet.pth`` has diffusers' names and those of the identity
  adapters; ``pose_net.pth`` and ``face_encoder.pth`` have ours.

What training here has saved has our names with the module's in front, which every function takes off.
"""

import re

IDENTITY = re.compile(r".*\.attn2\.processor\.id_to_[kv]\.weight")
MOTION = ".motion_modules."

_MOTION_NAMES = (
    ("temporal_transformer.", ""),
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
)
_TAIL = ("conv_norm_out.", "conv_out.")
_CHAMP_TRANSFORMERS = re.compile(r"(attentions\.\d+|guidance_attention)\..*")


def denoiser_name(name: str) -> str | None:
    """Without what has paths of its own: identity adapters and motion modules."""
    name = name.removeprefix("denoising_unet.")
    return None if IDENTITY.fullmatch(name) or MOTION in name else name


def reference_name(name: str) -> str | None:
    """The reference net has no output convolution."""
    name = name.removeprefix("reference_unet.")
    return None if name.startswith(_TAIL) else name


def identity_name(name: str) -> str | None:
    """The identity adapters alone."""
    name = name.removeprefix("denoising_unet.")
    return name if IDENTITY.fullmatch(name) else None


def motion_name(name: str) -> str | None:
    """AnimateDiff's and diffusers' names; the table of positions is computed here."""
    name = name.removeprefix("module.").removeprefix("denoising_unet.")
    if MOTION not in name or name.endswith(".pe"):
        return None
    for theirs, ours in _MOTION_NAMES:
        name = name.replace(theirs, ours)
    return name


def guidance_name(name: str, kind: str, ours: set[str]) -> str | None:
    """``ours``: names of the encoder of type ``kind``, which tell CHAMP's live transformers from the dead ones."""
    name = name.removeprefix(f"guidance.encoders.{kind}.")
    return None if _CHAMP_TRANSFORMERS.fullmatch(name) and name not in ours else name


def own_name(name: str, module: str) -> str:
    """Of ``m2p`` and ``face_tokens``."""
    return name.removeprefix(f"{module}.")


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
