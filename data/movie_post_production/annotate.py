"""From plain pictures to MoviePostProduction's raw layout: a caption, and boxes of what is seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import ImageDraw

from stagecoach.data.annotation.job import Annotated as Found
from stagecoach.data.annotation.job import AnnotateJob, Unannotated
from stagecoach.data.annotation.paths import check_models, key_of, take
from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.options import Argument
from stagecoach.data.files import write_json
from stagecoach.data.movie_post_production.captions import CAPTIONS, IMAGES
from stagecoach.data.pictures import FORMATS, find_pictures, read_picture

THINGS = (
    "person,face,animal,dog,cat,horse,bird,car,truck,bus,bicycle,motorcycle,boat,train,airplane,building,house,tree,"
    "flower,table,chair,sofa,bed,lamp,window,door,book,bottle,cup,plate,food,bag,hat,umbrella,phone,computer,screen,"
    "clock,sign,ball,weapon,instrument"
)
WIDTH = 512
"""Pixels of a preview."""


@dataclass(frozen=True)
class AnnotatePictures:
    """Which models, and what is looked for. Raises ``ValueError``."""

    captioner: Annotated[Path, Argument("folder of BLIP, Florence-2 or Qwen-VL")]
    detector: Annotated[Path, Argument("folder of OWLv2 or Grounding DINO")]
    phrases: Annotated[
        tuple[str, ...], Argument("what to look for (default: some forty kinds of things)", default=THINGS.split(","))
    ]
    threshold: Annotated[float, Argument("least score of a box", metavar="SCORE")] = 0.3
    max_found: Annotated[int, Argument("most objects of a picture, the surest", metavar="N")] = 50

    def __post_init__(self) -> None:
        if not self.phrases or not 0 <= self.threshold < 1:
            raise ValueError(
                f"{len(self.phrases)} phrases and a threshold of {self.threshold} found, expected things to look for "
                "and a score from 0 to below 1"
            )


class AnnotateMoviePostProduction(AnnotateJob):
    """Pictures in ``raw/images``, or in ``raw`` where there is no such folder. No depth label is written: the builder
    guesses it from the box. Raises ``RawError`` where a model is not where it should be."""

    def __init__(self, raw: Path, output: Path, options: AnnotatePictures) -> None:
        check_models({"captioner": options.captioner, "detector": options.detector})
        self._raw, self.output, self._options = raw, output, options
        self._captioner: Any = None
        self._detector: Any = None

    def items(self) -> list[Unannotated]:
        folder = self._raw / IMAGES if (self._raw / IMAGES).is_dir() and self._raw_has_images() else self._raw
        paths, _ = find_pictures(folder)
        if not paths:
            raise RawError(f"{folder}: no picture found, expected {FORMATS}")
        return sorted((Unannotated(key_of(path.stem), [path], path) for path in paths), key=lambda item: item.key)

    def models(self) -> Mapping[str, Mapping[str, Any]]:
        from stagecoach.data.annotation.boxes import box_entry
        from stagecoach.data.annotation.captions import caption_entry

        return {"captioner": caption_entry(self._options.captioner), "boxes": box_entry(self._options.detector)}

    def settings(self) -> dict[str, Any]:
        options = self._options
        return {"phrases": list(options.phrases), "threshold": options.threshold, "max_found": options.max_found}

    def start(self) -> None:
        from stagecoach.data.annotation.boxes import PhraseDetector
        from stagecoach.data.annotation.captions import TransformersCaptioner

        self.use(
            TransformersCaptioner(self._options.captioner),
            PhraseDetector(self._options.detector, self._options.threshold),
        )

    def use(self, captioner: Any, detector: Any) -> None:
        """Take these (``Captioner``, ``BoxDetector``)."""
        self._captioner, self._detector = captioner, detector

    def targets(self, item: Unannotated) -> list[str]:
        return [f"{IMAGES}/{item.key}{item.record.suffix.lower()}", f"{CAPTIONS}/{item.key}.json"]

    def annotate(self, item: Unannotated, given: frozenset[str]) -> Found:
        image, captions = self.targets(item)
        made = Found()
        if image not in given:
            take(item.record, self.output / image)
            made.files.append(image)
        if captions in given:
            return made
        picture = np.asarray(read_picture(item.record))
        found = self._detector.find(picture, self._options.phrases)[: self._options.max_found]
        entry = {
            "image_id": item.key,
            "width": picture.shape[1],
            "height": picture.shape[0],
            "global_caption": self._captioner.caption([picture]),
            "objects": [
                {"object_id": k, "category_name": one.phrase, "caption": one.phrase, "bbox": list(one.box)}
                for k, one in enumerate(found)
            ],
        }
        write_json(self.output / captions, entry)
        made.files.append(captions)
        made.numbers = {"scores": [one.score for one in found]}
        return made

    def preview(self, item: Unannotated) -> np.ndarray | None:
        """The picture with its boxes."""
        path = self.output / CAPTIONS / f"{item.key}.json"
        if not path.exists():
            return None
        picture = read_picture(item.record)
        picture = picture.resize((WIDTH, max(round(WIDTH * picture.height / picture.width), 1)))
        draw = ImageDraw.Draw(picture)
        for one in json.loads(path.read_text(encoding="utf-8"))["objects"]:
            box = (np.array(one["bbox"]) * [*picture.size, *picture.size]).tolist()
            draw.rectangle(box, outline=(255, 64, 64), width=2)
            draw.text((box[0] + 3, box[1] + 2), one["category_name"], fill=(255, 255, 0))
        return np.asarray(picture)

    def _raw_has_images(self) -> bool:
        """Not an ``images`` that this very command began to fill in place, beside the pictures themselves."""
        return self._raw.resolve() != self.output.resolve() or not find_pictures(self._raw)[0]
