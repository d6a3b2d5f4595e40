"""One reader of ``benchmarks/stream.py`` in a process of its own: prints one line of JSON.

It imports nothing of the project but for the project's own readers, so that mosaicml-streaming can be measured from
another virtual environment.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

BATCH = 8
READ = 1000
"""Samples read per measurement, at most."""


def stagecoach(folder, start=0):
    from benchmarks.stream import LARGE
    from stagecoach.data.streaming.dataset import ShardSet
    from stagecoach.data.streaming.mixture import DatasetMixture
    from stagecoach.data.streaming.plan import SamplePlan

    mixture = DatasetMixture([ShardSet.open(folder / "tars", LARGE)])
    plan = SamplePlan(mixture.members()[0], global_batch=1, seed=0)
    for position in range(start, len(mixture)):
        yield mixture.read(plan.locate(position, 0)).arrays


def stagecoach_batches(folder):
    from benchmarks.stream import LARGE, stream_of

    for _, _, batch in stream_of(folder / "tars", LARGE, BATCH, 0, _count(folder) // BATCH, workers=0):
        yield batch["latent"]


def webdataset(folder, start=0):
    """In the order of the tars, without a shuffle buffer, which is its fastest. A resume has to skip what was seen;
    undecoded, which is its fastest too."""
    import webdataset as wds

    urls = [str(path) for path in sorted((folder / "tars").glob("*.tar"))]
    dataset = wds.WebDataset(urls, shardshuffle=False, empty_check=False)
    if start:
        dataset = dataset.slice(start, None)
    yield from dataset.decode()


def webdataset_batches(folder):
    import torch

    waiting = []
    for sample in webdataset(folder):
        waiting.append(sample)
        if len(waiting) == BATCH:
            yield torch.stack([torch.from_numpy(s["latent.npy"].view(np.int16)).view(torch.bfloat16) for s in waiting])
            longest = max(len(s["text.npy"]) for s in waiting)
            text = np.zeros((BATCH, longest, waiting[0]["text.npy"].shape[1]), np.uint16)
            for row, s in enumerate(waiting):
                text[row, : len(s["text.npy"])] = s["text.npy"]
            waiting = []


def mosaic(folder, start=0):
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=1, num_canonical_nodes=1)
    if start:
        dataset.load_state_dict(dataset.state_dict(start, False) | {"sample_in_epoch": start})
    yield from dataset


def write_mds(folder):
    """The samples of the tars in mosaicml-streaming's own format, once."""
    if (folder / "mds" / "index.json").exists():
        return
    from streaming import MDSWriter

    columns = {"latent": "ndarray", "text": "ndarray"}
    with MDSWriter(out=str(folder / "mds"), columns=columns, size_limit="500mb") as out:
        for sample in _members(folder):
            out.write(sample)


def _members(folder):
    import io
    import tarfile

    for path in sorted((folder / "tars").glob("*.tar")):
        with tarfile.open(path) as tar:
            sample = {}
            for info in tar:
                name = info.name.split(".")[1]
                if name in ("latent", "text"):
                    sample[name] = np.load(io.BytesIO(tar.extractfile(info).read()))
                if len(sample) == 2:
                    yield sample
                    sample = {}


def _count(folder):
    manifest = json.loads((folder / "tars" / "manifest.json").read_text())
    return sum(shard["samples"] for shard in manifest["shards"])


def measure(samples, per_item):
    """Rate and CPU time from the second item on: imports, opening and first pages are not what is compared here."""
    next(samples)
    begin, cpu, read = time.perf_counter(), time.process_time(), 0
    for _ in samples:
        read += per_item
        if read >= READ:
            break
    return {
        "samples_per_second": read / (time.perf_counter() - begin),
        "cpu_ms_per_sample": 1e3 * (time.process_time() - cpu) / read,
    }


def main():
    name, folder, depth = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    if name == "write-mds":
        write_mds(folder)
        print("{}")
        return
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    readers = {"stagecoach": stagecoach, "webdataset": webdataset, "mosaicml-streaming": mosaic}
    if name.startswith("resume "):
        reader = readers[name.removeprefix("resume ")]
        next(iter(reader(folder)))  # imports and warm files; a resume pays for them alike in all readers
        begin = time.perf_counter()
        next(iter(reader(folder, int(depth * _count(folder)))))
        print(json.dumps({"seconds": time.perf_counter() - begin}))
    elif name.endswith(" batches"):
        batches = {"stagecoach batches": stagecoach_batches, "webdataset batches": webdataset_batches}[name]
        print(json.dumps(measure(batches(folder), BATCH)))
    else:
        print(json.dumps(measure(iter(readers[name](folder)), 1)))


if __name__ == "__main__":
    main()
