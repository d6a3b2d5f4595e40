"""A synthetic raw data set in the guide's layout: rendered objects with exact boxes, depth labels, captions, and pairs
of pictures that show one object twice, each naming the other as its reference.

Picture ``i`` of a seed is the same in a set of any size; an odd last one has no partner.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from stagecoach.data.figures import EVERYTHING, Picture, Variety, render
from stagecoach.data.files import write_json
from stagecoach.data.movie_post_production.captions import CAPTIONS, IMAGES
from stagecoach.data.pictures import Size
from stagecoach.data.synthetic import Steps, write_set


def write_synthetic(
    directory: str | Path,
    pictures: int,
    sizes: Sequence[Size],
    seed: int,
    steps: Steps = iter,
    variety: Variety = EVERYTHING,
) -> None:
    """Write ``pictures`` pictures of ``sizes`` (height, width) in turn, two neighbours of a size (see
    ``data.synthetic.write_set``).

    Raises ``ValueError`` for a number or a size that cannot be made and for a directory that holds something else.
    """
    if pictures < 1 or not sizes:
        raise ValueError(f"{pictures} pictures of {len(sizes)} sizes asked for, expected at least one of each")

    def write(base: Path, index: int) -> None:
        picture = render(seed, index, *sizes[index // 2 % len(sizes)], variety)
        Image.fromarray(picture.image).save(base / IMAGES / f"{_name(index)}.png")
        write_json(base / CAPTIONS / f"{_name(index)}.json", _entry(picture, index, pictures, variety.described))

    described = {"pictures": pictures, "sizes": [list(size) for size in sizes], "seed": seed}
    write_set(directory, pictures, write, described, (IMAGES, CAPTIONS), steps=steps)


def _name(index: int) -> str:
    return f"scene_{index:05d}"


def _entry(picture: Picture, index: int, pictures: int, described: bool) -> dict[str, Any]:
    partner = index ^ 1
    objects = [
        {
            "object_id": number,
            "category_name": placed.identity.shape if described else "thing",
            "bbox": list(box),
            "depth_label": placed.depth_label,
            "caption": str(placed.identity) if described else "a thing",
        }
        for number, (placed, box) in enumerate(zip(picture.objects, picture.boxes, strict=True))
    ]
    if partner < pictures:
        objects[0] |= {"ref_image_id": _name(partner), "ref_object_id": 0}
    height, width, _ = picture.image.shape
    return {
        "image_id": _name(index),
        "image_path": f"{IMAGES}/{_name(index)}.png",
        "global_caption": picture.caption,
        "width": width,
        "height": height,
        "objects": objects,
    }
