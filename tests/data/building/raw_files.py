"""Whether each raw file belongs to an item, for the tests of the families' jobs."""

import os
from pathlib import Path

from stagecoach.data.building.item_files import describe_items, first_change
from stagecoach.data.building.jobs import BuildJob


def files_of_no_item(raw: Path, job: BuildJob) -> set[str]:
    """Files and folders of ``raw`` in which something could change without any item of ``job`` noticing."""
    items, _ = job.items()
    before, unnoticed = describe_items(job, items, 2), set()
    for path in sorted(path for path in raw.rglob("*") if path.is_file()):
        found = path.stat()
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1000))
        if not first_change(job, items, before, describe_items(job, items, 2)):
            unnoticed.add(path.relative_to(raw).parts[0])
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    return unnoticed
