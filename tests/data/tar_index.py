"""The index of a tar made from the tar alone, to compare with what the writer noted."""

import os
from pathlib import Path
from typing import Any

from stagecoach.data.format.decode import decode_sample
from stagecoach.data.format.schema import SampleSchema, sample_sizes
from stagecoach.data.format.shards import FORMAT
from stagecoach.data.format.tar_walk import TarWalk


def index_tar(path: str | os.PathLike[str], schema: SampleSchema | None = None, heads: bool = True) -> dict[str, Any]:
    """The index of an existing WebDataset tar, ours or another's (``heads``, see ``decode_sample``), as ``write_index``
    takes it. With a schema each sample is checked against it and its sizes are noted.

    Raises ``DamagedError`` for a tar that cannot be read to its end, and for one in which the members of a sample are
    not neighbours; ``SchemaError`` for a sample that does not fit.
    """
    path, samples = Path(path), []
    with TarWalk(path) as walk:
        for sample in walk:
            row: dict[str, Any] = {"key": sample.key}
            if schema is not None:
                data = {name: memoryview(data) for name, (_, data) in sample.members.items()}
                arrays, _ = decode_sample(schema, data, f"{path}: sample {sample.key!r}", heads)
                row["sizes"] = sample_sizes(schema, {name: array.shape for name, array in arrays.items()})
            samples.append({**row, "members": sample.extents()})
        size = walk.bytes
    dims = {} if schema is None else {"dims": list(schema.dims)}
    return {"version": FORMAT, "tar": path.name, "bytes": size, **dims, "samples": samples}
