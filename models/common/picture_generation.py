"""Requests answered by the pipeline of diffusers that a family's base belongs to, with the trained LoRA in its
``transformer``: what a family has that brings none of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from pydantic import Field

from stagecoach.data.encoding.encoders import load_model
from stagecoach.data.encoding.pipeline_folder import PipelineFolder
from stagecoach.data.outputs.sheet import write_picture
from stagecoach.data.pictures import check_sides
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.generation import CPU, Generation, GenerationOptions, Request, RequestFields, Source, to_device
from stagecoach.models.weights import Weights, load_network

NUMBERS = ("", "_2", "_3")


class PictureFields(RequestFields):
    prompt: str
    negative_prompt: str | None = None
    height: int | None = Field(None, ge=16)
    width: int | None = Field(None, ge=16)


@dataclass(frozen=True)
class PictureRequest(Request):
    given: PictureFields
    height: int
    width: int


class PictureGeneration(Generation):
    """For a network of flow matching around a ``transformer`` of diffusers, whose config says the ``side`` of a
    picture, ``shift`` and ``guidance_scale``."""

    components = ("vae", *(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in NUMBERS))
    fields = PictureFields
    shown = ("picture.png",)
    steps = 28
    guidance = 5.0

    def __init__(self, weights: Weights, options: GenerationOptions) -> None:
        super().__init__(weights, options)
        if not {"side", "shift", "guidance_scale"} <= set(type(self.config).model_fields):
            raise ValueError(
                f"family {weights.card.family!r} cannot be sampled from; launch/export.py writes its weights"
            )
        if options.parts is None:
            raise ValueError(
                "no --components is given, expected the folder of the base's pipeline, as diffusers saves it"
            )
        self.folder, self.guidance = PipelineFolder(options.parts), self.config.guidance_scale
        self.require("vae")

    def parse(self, entry: Mapping[str, Any], source: Source) -> PictureRequest:
        given = self.read(entry, source)
        height, width = given.height or self.config.side, given.width or self.config.side
        try:
            check_sides(height, width, 16, "VAE stride 8, patch 2")
        except ValueError as error:
            raise ValueError(f"{source.where}: {error}") from error
        common = self.common(given, entry, source)
        return PictureRequest(**common, files=(), given=given, height=height, width=width)

    def load(self) -> None:
        dtype = self.options.dtype
        network: Any = load_network(self.weights, self.options.base, dtype=dtype, quantize=self.options.quantize)
        texts = self.folder.load_text_pipeline(CPU)
        parts = {name: part for name, part in texts.components.items() if part is not None}
        parts |= {"vae": load_model(self.folder.models["vae"], self.options.components["vae"], CPU, dtype)}
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.config.shift)
        pipeline = self.folder.kind(**{**parts, "transformer": network.transformer, "scheduler": scheduler})
        for name, part in pipeline.components.items():
            if name.startswith("text_encoder") and part is not None:
                part.to(dtype)
        if self.options.vae_tiling:
            pipeline.vae.enable_tiling()
        self.pipeline = to_device(pipeline, self.options)

    def answer(self, request: PictureRequest, folder: Path) -> dict[str, Any]:
        def on_step(*_: Any) -> dict[str, Any]:
            self.options.on_step()
            return {}

        found = self.pipeline(
            request.given.prompt,
            negative_prompt=request.given.negative_prompt,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            sigmas=np.linspace(1, 1 / request.steps, request.steps).tolist(),  # of previews
            guidance_scale=request.guidance,
            generator=request_generators(request.seed, request.id, [0]),
            output_type="np",
            callback_on_step_end=on_step,
        )
        write_picture(folder / "picture.png", (found.images[0] * 255).round().astype(np.uint8))
        return {"width": request.width, "height": request.height}
