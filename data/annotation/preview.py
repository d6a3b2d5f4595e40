"""Pictures of what was found, over the frames it was found in."""

from pathlib import Path

from stagecoach.data.annotation.job import AnnotateJob
from stagecoach.data.outputs.sheet import write_picture


def draw_previews(job: AnnotateJob, folder: Path) -> int:
    """Write ``folder/<key>.png`` for each item of which there is something to see, and return how many."""
    drawn = 0
    for item in job.items():
        picture = job.preview(item)
        if picture is not None:
            write_picture(folder / f"{item.key}.png", picture)
            drawn += 1
    return drawn
