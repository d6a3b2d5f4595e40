"""What ``shards build`` and ``shards synthesize`` ask of MoviePostProduction."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from stagecoach.data.builders import Builder
from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.building.options import Argument
from stagecoach.data.movie_post_production.annotate import AnnotateMoviePostProduction, AnnotatePictures
from stagecoach.data.movie_post_production.captions import read_captions
from stagecoach.data.movie_post_production.crops import cut
from stagecoach.data.movie_post_production.job import MovieJob, MovieStatistics
from stagecoach.data.movie_post_production.options import BuildOptions
from stagecoach.data.movie_post_production.picture import sample_picture
from stagecoach.data.movie_post_production.synthetic import write_synthetic
from stagecoach.data.pictures import Size, parse_sizes, read_picture
from stagecoach.data.streaming.dataset import Sample
from stagecoach.data.synthetic import Steps


@dataclass(frozen=True)
class SyntheticPictures:
    sizes: Annotated[
        tuple[Size, ...],
        Argument(
            "sizes of the pictures, in turn (default: 128x128)", metavar="HxW", parse=parse_sizes, default=["128x128"]
        ),
    ]


class FamilyBuilder(Builder):
    options = (BuildOptions,)
    annotate_options = (AnnotatePictures,)
    synthetic_options = SyntheticPictures
    items = "pictures"
    tiny_encoders = "FLUX's folders, image_encoder and dino"

    def make_job(self, raw: Path, options: BuildOptions) -> MovieJob:
        return MovieJob(raw, options)

    def make_annotate_job(self, raw: Path, output: Path, options: AnnotatePictures) -> AnnotateMoviePostProduction:
        return AnnotateMoviePostProduction(raw, output, options)

    def write_raw(self, output: Path, count: int, seed: int, options: SyntheticPictures, steps: Steps) -> None:
        write_synthetic(output, count, options.sizes, seed, steps)

    def write_encoders(self, raw: Path, directory: Path, seed: int) -> None:
        from stagecoach.data.encoding.tiny_encoders import CROP_SIZE, write_flux_encoders  # takes seconds to import

        described, _, _ = read_captions(raw)
        pictures = [read_picture(picture.image) for picture in described]
        crops = [
            cut(image, item.box, (CROP_SIZE, CROP_SIZE))
            for image, picture in zip(pictures, described, strict=True)
            for item in picture.objects
        ]
        texts = [text for picture in described for text in (picture.caption, *(item.text for item in picture.objects))]
        write_flux_encoders(directory, [np.asarray(image) for image in pictures], np.stack(crops), texts, seed)

    def count(self, statistics: Statistics | None, sample: EncodedSample) -> Statistics:
        latent = (sample.arrays["latent"].astype(np.uint32) << 16).view(np.float32)  # bf16 is the upper half of float32
        statistics = statistics or MovieStatistics(len(latent), sample.arrays["dino"].shape[1])
        statistics.add(replace(sample, counted=(latent, 0)))
        return statistics

    def picture(self, sample: Sample) -> np.ndarray:
        return sample_picture(sample)
