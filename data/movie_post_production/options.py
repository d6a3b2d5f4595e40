"""What a MoviePostProduction build can be asked for, and the sizes of what it makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from stagecoach.data.building.options import Argument
from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.movie_post_production.boxes import BoxFormat, BoxUnits
from stagecoach.data.movie_post_production.schema import movie_post_production_schema
from stagecoach.data.pictures import Preview, Sizes

PRECOMPUTED = ("latents", "text", "clip", "dino")

LatentConvention = Literal["flux", "raw", "scaled"]


@dataclass(frozen=True)
class BuildOptions:
    """``flux``: folder of FLUX in diffusers' layout (vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2).
    ``clip``, ``dino``: folders of the crops' encoders. ``sizes``: height and width of what pictures are cropped to.

    ``precomputed``: what is read from the raw data set instead of being computed; its files must all be there, since
    vectors of two encoders in one data set would be worthless. ``latent_convention``: how precomputed latents were
    made of z, the VAE's output: "flux" is (z - shift) scale, as stored; "raw" is z; "scaled" is z scale.
    ``preview``: longest side of the stored picture, 0 for none. ``seed_split``: the guide's split, the first nine
    tenths by name for training. Raises ``ValueError`` for options that contradict each other.
    """

    flux: Annotated[
        Path,
        Argument("folder of FLUX.1 in diffusers' layout: vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2"),
    ]
    clip: Annotated[Path | None, Argument("folder of the CLIP model for crops")]
    dino: Annotated[Path | None, Argument("folder of the DINOv2 model for crops")]
    sizes: Sizes
    text_length: Annotated[int, Argument("T5 tokens: 512 for FLUX.1-dev (default), 256 for schnell", metavar="N")] = 512
    max_objects: Annotated[int, Argument("objects per picture; the smallest beyond that are left out", metavar="N")] = (
        50
    )
    preview: Preview = 512
    precomputed: Annotated[
        tuple[str, ...],
        Argument(
            f"what is read from embedding/ and latents/ instead of being computed: {', '.join(PRECOMPUTED)}",
            metavar="WHAT",
            choices=PRECOMPUTED,
            parse=lambda words: sorted(set(words)),
        ),
    ] = ()
    latent_convention: Annotated[
        LatentConvention,
        Argument(
            "how precomputed latents were made of the VAE's output z: flux (z - shift) scale (default), raw z, scaled "
            "z scale"
        ),
    ] = "flux"
    clip_dim: Annotated[
        int, Argument("length of precomputed CLIP vectors: 768 for ViT-L (default), 512 for ViT-B", metavar="N")
    ] = 768
    dino_dim: Annotated[
        int, Argument("length of precomputed DINO vectors: 1024 for ViT-L (default), 768 for ViT-B", metavar="N")
    ] = 1024
    box_format: Annotated[
        BoxFormat | None,
        Argument("what a bbox is: xyxy corners (default; checked on all boxes) or xywh a corner, width and height"),
    ] = None
    box_units: Annotated[
        BoxUnits | None,
        Argument(
            "of a bbox: fraction of the picture's side (default; checked), pixel (default in files with annos) or 1000 "
            "for thousandths of the side"
        ),
    ] = None
    seed_split: Annotated[
        bool,
        Argument(
            "the guide's split: the first nine tenths of the caption files by name for training (default: by a hash of "
            "the name)"
        ),
    ] = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.precomputed) - set(PRECOMPUTED))
        if unknown:
            raise ValueError(f"precomputed {unknown} found, expected some of {list(PRECOMPUTED)}")
        for name in ("clip", "dino"):
            if getattr(self, name) is None and name not in self.precomputed:
                raise ValueError(
                    f"no folder of the {name} encoder is given, expected --{name} DIR or '{name}' among --precomputed"
                )
        read = self.precomputed
        for name, of, ignored in (
            ("clip", "clip", self.clip is not None and "clip" in read),
            ("dino", "dino", self.dino is not None and "dino" in read),
            ("clip_dim", "clip", self.clip_dim != 768 and "clip" not in read),
            ("dino_dim", "dino", self.dino_dim != 1024 and "dino" not in read),
            ("latent_convention", "latents", self.latent_convention != "flux" and "latents" not in read),
        ):
            if ignored:
                how = "with" if of in read else "without"
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} {how} '{of}' among --precomputed, where it has "
                    "no meaning; leave it out, or change --precomputed"
                )
        if not self.sizes:
            raise ValueError("no size is given, expected at least one height and width")
        for name, least in (("text_length", 1), ("max_objects", 1), ("preview", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} found, expected at least {least}")


@dataclass(frozen=True)
class Dims:
    """Sizes of what the encoders make; ``clip_size``, ``dino_size``: side of the crops in pixels, None where vectors
    are read."""

    latent: int
    text: int
    pooled: int
    clip: int
    dino: int
    clip_size: int | None
    dino_size: int | None

    @classmethod
    def of(cls, options: BuildOptions) -> Dims:
        """From the encoders' configurations. Raises ``EncoderError``."""
        from diffusers import AutoencoderKL  # takes seconds
        from transformers import CLIPTextModel, T5EncoderModel

        from stagecoach.data.encoding.encoders import load_config
        from stagecoach.data.encoding.image_encoders import ClipEncoder, DinoEncoder

        vae = load_config(AutoencoderKL, options.flux / "vae")
        text = load_config(T5EncoderModel, options.flux / "text_encoder_2")
        pooled = load_config(CLIPTextModel, options.flux / "text_encoder")
        clip_size, clip = (None, options.clip_dim) if "clip" in options.precomputed else ClipEncoder.sizes(options.clip)
        dino_size, dino = (None, options.dino_dim) if "dino" in options.precomputed else DinoEncoder.sizes(options.dino)
        return cls(vae["latent_channels"], text["d_model"], pooled["hidden_size"], clip, dino, clip_size, dino_size)

    def schema(self, options: BuildOptions) -> SampleSchema:
        return movie_post_production_schema(
            self.latent,
            self.text,
            self.pooled,
            self.clip,
            self.dino,
            object_text="text" not in options.precomputed,
            image=options.preview > 0,
        )

    def sample_bytes(self, options: BuildOptions) -> int:
        """About what a sample takes, with 18 objects as the guide's pictures have, and without the preview."""
        pixels = sum(height * width for height, width in options.sizes) / len(options.sizes)
        numbers = (
            self.latent * pixels / 64
            + options.text_length * self.text
            + self.pooled
            + 18 * (self.clip + self.dino + self.pooled)
        )
        return round(2 * numbers)
