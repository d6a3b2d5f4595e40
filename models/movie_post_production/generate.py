"""Requests of MoviePostProduction answered with pictures: what was painted, its boxes, its objects next to their
references."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from stagecoach.data.movie_post_production.painted import draw_boxes, reference_sheet
from stagecoach.data.movie_post_production.requests import PictureRequest, parse_request
from stagecoach.data.outputs.sheet import write_picture
from stagecoach.data.pictures import check_sides
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.generation import Generation, GenerationOptions, Request, RequestFields, Source, to_device
from stagecoach.models.movie_post_production.config import PATCH, VAE_STRIDE
from stagecoach.models.movie_post_production.pipeline import MoviePostPipeline
from stagecoach.models.movie_post_production.sampler import STEPS
from stagecoach.models.weights import Weights, load_network

NEEDED = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
OF_REFERENCES = ("image_encoder", "dino")


class PictureFields(RequestFields):
    """What a request may say besides caption, size and objects, which ``parse_request`` reads."""

    negative_prompt: str | None = None
    true_cfg_scale: float = Field(1.0, ge=0)
    layout_part: float | None = Field(None, ge=0, le=1)
    """Of the steps, from the first, in which objects are shown; None for the network's."""
    reference_guidance: float | None = Field(None, ge=0)
    scheduler: str | None = None


@dataclass(frozen=True)
class MovieRequest(Request):
    """``size``: (width, height) in pixels."""

    given: PictureFields
    picture: PictureRequest
    size: tuple[int, int]


class MoviePostGeneration(Generation):
    components = (*NEEDED, *OF_REFERENCES)
    fields = PictureFields
    shown = ("picture.png", "overlay.png", "references.png")
    steps = STEPS
    guidance = 3.5
    pipeline: MoviePostPipeline

    def __init__(self, weights: Weights, options: GenerationOptions) -> None:
        super().__init__(weights, options)
        self.require(*NEEDED)

    def parse(self, entry: Mapping[str, Any], source: Source) -> MovieRequest:
        """In the guide's format or InstanceAssemble's; a ``prompt`` alone is a caption without objects."""
        own = {name: value for name, value in entry.items() if name in PictureFields.model_fields}
        given = self.read(own, source)
        rest = {name: value for name, value in entry.items() if name not in own}
        if not {"annos", "global_caption"} & set(rest) and "prompt" in rest:
            rest["global_caption"] = rest.pop("prompt")
        picture = parse_request(rest, source.where, source.folder)
        size = picture.size or (self.config.image.width, self.config.image.height)
        try:
            check_sides(size[1], size[0], VAE_STRIDE * PATCH, "VAE stride 8, patch 2")
        except ValueError as error:
            raise ValueError(f"{source.where}: {error}") from error
        shown = [item.reference.picture for item in picture.objects if item.reference is not None]
        if shown and not set(OF_REFERENCES) <= set(self.options.components):
            raise ValueError(
                f"{source.where}: an object has a reference, and {' and '.join(OF_REFERENCES)} are not given, expected "
                "their folders: --component NAME=DIR"
            )
        return MovieRequest(
            **self.common(given, entry, source),
            files=tuple(path for path in shown if isinstance(path, Path)),
            given=given,
            picture=picture,
            size=size,
        )

    def load(self) -> None:
        network = load_network(
            self.weights, self.options.base, dtype=self.options.dtype, quantize=self.options.quantize
        )
        pipeline = MoviePostPipeline.from_network(network, **self.options.components)  # type: ignore[arg-type]
        if self.options.vae_tiling:
            pipeline.vae.enable_tiling()
        self.pipeline = to_device(pipeline, self.options)

    def answer(self, request: MovieRequest, folder: Path) -> dict[str, Any]:
        given, objects = request.given, request.picture.objects

        def on_step(*_: Any) -> dict[str, Any]:
            self.options.on_step()
            return {}

        found: Any = self.pipeline(
            request.picture.caption,
            negative_prompt=given.negative_prompt,
            true_cfg_scale=given.true_cfg_scale,
            objects=list(objects) or None,
            layout_part=given.layout_part,
            reference_guidance_scale=given.reference_guidance,
            width=request.size[0],
            height=request.size[1],
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            scheduler=given.scheduler,
            generator=request_generators(request.seed, request.id, [0]),
            output_type="np",
            callback_on_step_end=on_step,
        )
        picture = (found.images[0] * 255).round().astype(np.uint8)
        write_picture(folder / "picture.png", picture)
        if objects:
            boxes = [item.box for item in objects]
            write_picture(folder / "overlay.png", draw_boxes(picture, boxes, found.alpha[0].tolist()))
            references = [None if item.reference is None else item.reference.cut() for item in objects]
            write_picture(folder / "references.png", reference_sheet(picture, boxes, references))
        return {"width": request.size[0], "height": request.size[1], "objects": len(objects)}
