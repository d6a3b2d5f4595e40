"""MoviePostProduction's part of ``launch/build_shards.py``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.builders import Builder, Track
from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.movie_post_production.captions import read_captions
from stagecoach.data.movie_post_production.crops import cut, parse_sizes
from stagecoach.data.movie_post_production.job import MovieJob
from stagecoach.data.movie_post_production.options import LATENT_CONVENTIONS, PRECOMPUTED, BuildOptions
from stagecoach.data.movie_post_production.picture import sample_picture
from stagecoach.data.movie_post_production.readers import read_image
from stagecoach.data.movie_post_production.statistics import MovieStatistics
from stagecoach.data.movie_post_production.synthetic import write_synthetic
from stagecoach.data.streaming.dataset import Sample


class FamilyBuilder(Builder):
    def add_build_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--flux",
            type=Path,
            required=True,
            metavar="DIR",
            help="folder of FLUX.1 in diffusers' layout: vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2",
        )
        parser.add_argument("--clip", type=Path, metavar="DIR", help="folder of the CLIP model for crops")
        parser.add_argument("--dino", type=Path, metavar="DIR", help="folder of the DINOv2 model for crops")
        parser.add_argument(
            "--sizes",
            nargs="+",
            default=["1024"],
            metavar="SIZE",
            help="HEIGHTxWIDTH, of which each picture takes the nearest in shape, or one number R for "
            "the usual shapes of R x R pixels (default: 1024)",
        )
        parser.add_argument(
            "--text-length",
            type=int,
            default=512,
            metavar="N",
            help="T5 tokens: 512 for FLUX.1-dev (default), 256 for schnell",
        )
        parser.add_argument(
            "--max-objects",
            type=int,
            default=50,
            metavar="N",
            help="objects per picture; the smallest beyond that are left out (default: 50)",
        )
        parser.add_argument(
            "--preview",
            type=int,
            default=512,
            metavar="PIXELS",
            help="longest side of the stored picture, for previews; 0 stores none (default: 512)",
        )
        parser.add_argument(
            "--precomputed",
            nargs="+",
            default=[],
            choices=PRECOMPUTED,
            metavar="WHAT",
            help=f"what is read from embedding/ and latents/ instead of being computed: {', '.join(PRECOMPUTED)}",
        )
        parser.add_argument(
            "--latent-convention",
            choices=LATENT_CONVENTIONS,
            default="flux",
            help="how precomputed latents were made of the VAE's output z: flux (z - shift) scale "
            "(default), raw z, scaled z scale",
        )
        parser.add_argument(
            "--clip-dim",
            type=int,
            default=768,
            metavar="N",
            help="length of precomputed CLIP vectors: 768 for ViT-L (default), 512 for ViT-B",
        )
        parser.add_argument(
            "--dino-dim",
            type=int,
            default=1024,
            metavar="N",
            help="length of precomputed DINO vectors: 1024 for ViT-L (default), 768 for ViT-B",
        )
        parser.add_argument(
            "--seed-split",
            action="store_true",
            help="the guide's split: the first nine tenths of the caption files by name for training "
            "(default: by a hash of the name)",
        )

    def job(self, arguments: Namespace) -> MovieJob:
        options = BuildOptions(
            arguments.flux,
            arguments.clip,
            arguments.dino,
            tuple(parse_sizes(arguments.sizes)),
            arguments.text_length,
            arguments.max_objects,
            arguments.preview,
            tuple(sorted(set(arguments.precomputed))),
            arguments.latent_convention,
            arguments.clip_dim,
            arguments.dino_dim,
            arguments.seed_split,
        )
        return MovieJob(arguments.input, options)

    def add_synthesize_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--sizes",
            nargs="+",
            default=["128x128"],
            metavar="HxW",
            help="sizes of the pictures, in turn (default: 128x128)",
        )
        parser.add_argument(
            "--encoders",
            type=Path,
            metavar="DIR",
            help="also write tiny encoders, fitted to the pictures: FLUX's folders, image_encoder and dino below DIR",
        )

    def synthesize(self, arguments: Namespace, track: Track) -> dict[str, Any]:
        write_synthetic(
            arguments.output,
            arguments.clips,
            parse_sizes(arguments.sizes),
            arguments.seed,
            lambda numbers: track(numbers, "rendering", arguments.clips),
        )
        if arguments.encoders:
            write_encoders(arguments.output, arguments.encoders, arguments.seed)
        return {
            "output": str(arguments.output),
            "pictures": arguments.clips,
            "encoders": str(arguments.encoders) if arguments.encoders else None,
        }

    def count(self, statistics: Statistics | None, sample: EncodedSample) -> Statistics:
        latent = (sample.arrays["latent"].astype(np.uint32) << 16).view(np.float32)  # bf16 is the upper half of float32
        statistics = statistics or MovieStatistics(len(latent), sample.arrays["dino"].shape[1])
        statistics.add(replace(sample, counted=(latent, 0)))
        return statistics

    def picture(self, sample: Sample) -> np.ndarray:
        return sample_picture(sample)


def write_encoders(raw: Path, directory: Path, seed: int) -> None:
    """Tiny encoders for the pictures of a raw data set, below ``directory``."""
    from stagecoach.data.movie_post_production.tiny import CROP_SIZE, write_tiny_encoders  # takes seconds to import

    described, _, _ = read_captions(raw)
    pictures = [read_image(picture.image) for picture in described]
    crops = [
        cut(image, item.box, (CROP_SIZE, CROP_SIZE))
        for image, picture in zip(pictures, described, strict=True)
        for item in picture.objects
    ]
    texts = [text for picture in described for text in (picture.caption, *(item.text for item in picture.objects))]
    write_tiny_encoders(directory, [np.asarray(image) for image in pictures], np.stack(crops), texts, seed)
