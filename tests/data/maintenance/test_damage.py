"""Any damage that changes what a trainer would see is found by ``check`` and by the reader, with the file named; no
damage makes either hang, crash or give a wrong sample."""

import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from stagecoach.data.maintenance.check import check
from stagecoach.data.streaming.dataset import ShardSet
from tests.data.maintenance.damages import DAMAGES

SECONDS = 10


@pytest.fixture(scope="module")
def small_set(build, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """Eight samples in three tars, and the bytes of all files."""
    directory = tmp_path_factory.mktemp("damage") / "train"
    assert len(build(directory, samples=8).shard_sizes) > 2
    return directory, {path.name: path.read_bytes() for path in directory.iterdir()}


@contextmanager
def time_limit():
    def late(*_):
        raise AssertionError(f"still at work after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def applied(directory, files, changes):
    """The folder with these changes, whole again afterwards."""
    try:
        for name, content in changes.items():
            (directory / name).unlink() if content is None else (directory / name).write_bytes(content)
        yield
    finally:
        for name in changes:
            (directory / name).write_bytes(files[name])


def seen(directory, schema) -> tuple[list, list[str]]:
    """What a trainer sees, and what the reader complains of. Anything but a ``ValueError`` is a failure of the test."""
    try:
        shards = ShardSet.open(directory, schema)
    except ValueError as error:
        return [], [str(error)]
    samples, errors = [], []
    for index in range(len(shards)):
        try:
            sample = shards.read(index)
        except ValueError as error:
            errors.append(str(error))
            continue
        arrays = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in sample.arrays.items()}
        samples.append((sample.shard, sample.key, arrays, sample.meta))
    return samples, errors


def cases(repeats):
    for number, (name, damage) in enumerate(DAMAGES.items()):
        for repeat in repeats:
            yield name, damage, np.random.default_rng([number, repeat])


@pytest.mark.parametrize(
    "repeats", [range(4), pytest.param(range(4, 18), marks=pytest.mark.slow)], ids=["quick", "many"]
)
def test_no_damage_goes_unseen(small_set, schema, repeats):
    directory, files = small_set
    truth, errors = seen(directory, schema)
    assert not errors
    assert not check(directory)
    ran, found = Counter(), Counter()
    for name, damage, rng in cases(repeats):
        changes = damage(rng, files)
        if all(files[file] == content for file, content in changes.items()):
            continue
        with applied(directory, files, changes), time_limit():
            samples, errors = seen(directory, schema)
            problems = check(directory)
        case = f"{name}, {sorted(changes)}: read {errors}, check {problems}"
        ran[name] += 1
        found[name] += bool(problems)
        for complaints in (errors, problems):
            assert not complaints or any(file in complaint for file in changes for complaint in complaints), case
        if errors:
            assert problems, case
            assert all(sample in truth for sample in samples), case
        else:
            assert samples == truth, case
    assert sum(ran.values()) >= (500 if len(repeats) > 12 else 150)
    assert set(found) == set(DAMAGES)
    assert all(found.values()), [name for name in DAMAGES if not found[name]]


def test_the_folder_is_whole_again_after_the_fuzz(small_set, schema):
    directory, files = small_set
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == files
