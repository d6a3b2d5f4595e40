"""Pictures with captions become latents and text states: what a text-to-image family needs, but for its text fields.

The raw data set is a folder of pictures. A caption is the text in ``<name>.txt`` next to ``<name>.png``, or ``text`` in
the picture's line of ``metadata.jsonl`` ({"file_name": ..., "text": ...}, as Hugging Face's image folders have it).
Names are compared with composed letters (``data.names``).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from PIL import Image

from stagecoach.data import figures
from stagecoach.data.builders import Builder
from stagecoach.data.building.jobs import EncodedSample, EncodingJob, RawError, RawItem, items_per_part
from stagecoach.data.building.options import Argument
from stagecoach.data.building.raw_files import check_split, read_text, safe_key
from stagecoach.data.files import sha256_json
from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.names import as_spelled, composed
from stagecoach.data.pictures import (
    FORMATS,
    CoverCrop,
    Preview,
    Sizes,
    choose_size,
    find_pictures,
    picture_size,
    read_picture,
    shrink,
    unread_pictures,
    warn_of_others,
)
from stagecoach.data.streaming.dataset import Sample
from stagecoach.data.synthetic import Steps, write_set

if TYPE_CHECKING:
    from torch import Tensor

    from stagecoach.data.encoding.pipeline_folder import PipelineFolder
    from stagecoach.data.encoding.tiny_vae import Layout

METADATA = "metadata.jsonl"
SIDECARS = (".txt", ".json", ".jsonl")


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture and its caption; ``split`` is train, val or None."""

    image: Path
    caption: str
    split: str | None = None


@dataclass(frozen=True)
class CaptionedOptions:
    """``base``: folder of the pipeline. ``preview``: longest side of the stored picture, 0 for none."""

    base: Annotated[Path, Argument("folder of the pipeline in diffusers' layout: vae, text encoders, tokenizers")]
    sizes: Sizes
    preview: Preview = 256


@dataclass(frozen=True)
class SyntheticPictures:
    height: Annotated[int, Argument("pixels")] = 128
    width: Annotated[int, Argument("pixels")] = 128


def read_captioned(base: Path) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
    """Items of all pictures below ``base`` by name, whose records are ``CaptionedPicture``; (name, error) of those that
    cannot be used. Raises ``RawError`` where there is no picture."""
    paths, others = find_pictures(base, below=True)
    if not paths:
        raise RawError(f"{base}: no picture found, expected <name>.png with its caption in <name>.txt or {METADATA}")
    listed, lists = _read_metadata(base / METADATA), (base / METADATA).is_file()
    items, bad = [], []
    for path in unread_pictures(others):
        bad.append((str(path.relative_to(base)), RawError(f"{path}: a format that is not read, expected {FORMATS}")))
    for path in paths:
        name = str(path.relative_to(base))
        try:
            text = as_spelled(path.with_suffix(".txt"))
            entry = listed.pop(composed(name), None) if lists else {"text": read_text(text, "its caption")}
            if not entry or not isinstance(entry.get("text"), str) or not entry["text"].strip():
                raise RawError(f"{path}: no caption found, expected a text in {METADATA if lists else 'its .txt'}")
            split = check_split(entry, str(path))
        except RawError as error:
            bad.append((name, error))
            continue
        key = safe_key(composed(str(path.relative_to(base).with_suffix(""))))
        picture = CaptionedPicture(path, " ".join(entry["text"].split()), split)
        items.append(RawItem(key, picture.split, picture))
    named = {str(path.relative_to(base)) for path in others}
    lost = sorted(name for name in listed if name not in named)
    bad += [(name, RawError(f"{base / name}: missing, expected the picture that {METADATA} names")) for name in lost]
    return items, bad


def _read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    entries = {}
    # Not splitlines, which also splits at the line separators that JSON allows inside a string.
    for number, line in enumerate(read_text(path, "captions").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            entries[composed(entry["file_name"])] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise RawError(
                f"{path}:{number}: not readable ({type(error).__name__}: {error}), expected file_name and text"
            ) from error
    return entries


class CaptionedJob(EncodingJob):
    """Items' records are ``CaptionedPicture``. ``builder`` gives the schema and the text states."""

    _told = False
    """Whether files that are passed over were named."""

    def __init__(self, raw: Path, options: CaptionedOptions, builder: CaptionedBuilder) -> None:
        self.raw, self.options, self.builder = raw, options, builder
        configs = self.folder.configs
        self.schema = builder.schema(
            configs, [Field("image", "image", ("H", "W", 3), optional=True)] if options.preview else []
        )
        area = sum(height * width for height, width in options.sizes) / len(options.sizes)
        self.part_items = items_per_part(2 * (area / 64 * configs["vae"]["latent_channels"] + builder.text_numbers))

    @cached_property
    def folder(self) -> PipelineFolder:
        from stagecoach.data.encoding.pipeline_folder import PipelineFolder  # takes seconds to import

        return PipelineFolder(self.options.base)

    @property
    def entries(self) -> Mapping[str, Any]:
        return self.folder.entries

    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        if not self._told:  # once, not in each worker that gets a copy
            others = find_pictures(self.raw, below=True)[1]
            warn_of_others(self.raw, [path for path in others if path not in unread_pictures(others)], SIDECARS)
            self._told = True
        return read_captioned(self.raw)

    def settings(self) -> dict[str, Any]:
        items, bad = read_captioned(self.raw)
        described = [[item.key, item.split, item.record.caption] for item in items] + [str(error) for _, error in bad]
        options = {"sizes": self.options.sizes, "preview": self.options.preview}
        return {"options": options, "captions": sha256_json(described), "encoders": self.entries}

    def check(self, item: RawItem) -> None:
        path = item.record.image
        height, width = picture_size(path)
        choose_size(height, width, self.options.sizes, str(path))

    def load(self) -> tuple[Any, Any]:
        from stagecoach.data.encoding.encoders import default_device
        from stagecoach.data.encoding.latent_encoders import LatentEncoder

        return LatentEncoder(self.options.base / "vae", default_device()), self.folder.load_text_pipeline()

    def prepare(self, item: RawItem) -> np.ndarray:
        path = item.record.image
        image = np.asarray(read_picture(path))
        height, width, _ = image.shape
        return CoverCrop.of(height, width, *choose_size(height, width, self.options.sizes, str(path))).image(image)

    def encode(self, items: list[RawItem], prepared: list[np.ndarray]) -> list[EncodedSample]:
        import torch

        from stagecoach.data.encoding.encoders import bits

        vae, pipeline = self.models
        latents = vae.encode(prepared)
        captions = [item.record.caption for item in items]
        with torch.inference_mode():
            texts = self.builder.encode_texts(pipeline, captions)
        out = []
        for index, (caption, image) in enumerate(zip(captions, prepared, strict=True)):
            states = {name: bits(states[index].float().cpu()) for name, states in texts.items()}
            preview = {"image": shrink(image, self.options.preview)} if self.options.preview else {}
            out.append(EncodedSample({"latent": bits(latents[index]), **states, **preview}, {"caption": caption}))
        return out


class CaptionedBuilder(Builder):
    """Builder of a text-to-image family: latents of its VAE and the text states of its pipeline."""

    options = (CaptionedOptions,)
    synthetic_options = SyntheticPictures
    items = "pictures"
    tiny_encoders = "vae, text encoders and tokenizers"
    pipeline = ""
    """Name of the pipeline in diffusers, and below the layout of its VAE (``tiny_vae``); for tiny encoders."""
    vae_layout: Layout = "flux"
    text_numbers = 333 * 4096
    """About how many numbers the text states of a caption have, from which the size of a part follows."""

    @abstractmethod
    def schema(self, configs: Mapping[str, Mapping[str, Any]], more: list[Field]) -> SampleSchema:
        """``latent`` bf16 [C, h, w], the fields that ``encode_texts`` makes, and ``more``, by the models' configs."""

    @abstractmethod
    def encode_texts(self, pipeline: Any, captions: list[str]) -> dict[str, Tensor]:
        """By field the states [B, ...] of captions, from the pipeline with its text encoders alone."""

    def make_job(self, raw: Path, options: CaptionedOptions) -> CaptionedJob:
        return CaptionedJob(raw, options, self)

    def write_raw(self, output: Path, count: int, seed: int, options: SyntheticPictures, steps: Steps) -> None:
        """Textured figures on a floor, each picture with its caption."""

        def write(base: Path, index: int) -> None:
            picture = figures.render(seed, index, options.height, options.width)
            Image.fromarray(picture.image).save(base / f"picture_{index:05d}.png")
            (base / f"picture_{index:05d}.txt").write_text(picture.caption + "\n", encoding="utf-8")

        described = {"pictures": count, "height": options.height, "width": options.width, "seed": seed}
        write_set(output, count, write, described, steps=steps)

    def write_encoders(self, raw: Path, directory: Path, seed: int) -> None:
        from stagecoach.data.encoding.tiny_encoders import write_pipeline_encoders  # takes seconds to import

        records = [item.record for item in read_captioned(raw)[0]]
        pictures = [np.asarray(read_picture(record.image)) for record in records]
        captions = [record.caption for record in records]
        write_pipeline_encoders(directory, self.pipeline, self.vae_layout, pictures, captions, seed)

    def picture(self, sample: Sample) -> np.ndarray:
        if "image" in sample.arrays:
            return sample.arrays["image"]
        _, height, width = sample.arrays["latent"].shape
        return np.full((8 * height, 8 * width, 3), 96, np.uint8)
