"""Several data sets as one: common indices, buckets, weights, and the stream over all of it."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagecoach.data.files import DamagedError
from stagecoach.data.format.schema import Field, SampleSchema, SchemaError
from stagecoach.data.format.shards import ShardWriter, index_path, read_manifest, write_index, write_manifest
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.mixture import DatasetMixture, Source, check_inputs
from stagecoach.data.streaming.plan import SamplePlan
from stagecoach.data.streaming.stream import Batching, Stream
from stagecoach.data.streaming.windows import Window

SCHEMA = SampleSchema(
    "clips",
    1,
    (
        Field("latent", "f32", (2, "h", "w")),
        Field("text", "f32", ("L", 2), pad=0),
        Field("pose", "f32", ("F", 2)),
        Field("number", "i64", ()),
    ),
    window="F",
)
SIZES = [(4, 4), (4, 6), (2, 8)]
WORLD_SIZES = [1, 2, 3, 6]
GLOBAL_BATCH = 6
LONGEST = 7
"""Frames that the longest window spans."""
properties = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(directory: Path, prefix: str, samples: list[tuple[tuple[int, int], int]], statistics=None) -> None:
    """One sample per entry ``((h, w), frames)``; ``number`` counts them, ``pose`` holds the frame's number."""
    with ShardWriter(directory, SCHEMA, max_bytes=20480) as writer:
        for number, ((h, w), frames) in enumerate(samples):
            writer.add(
                f"{prefix}{number:03d}",
                {
                    "latent": np.full((2, h, w), number, np.float32),
                    "text": np.ones((number % 3 + 1, 2), np.float32),
                    "pose": np.repeat(np.arange(frames, dtype=np.float32)[:, None], 2, 1),
                    "number": np.array(number),
                },
                {},
            )
    write_manifest(directory, SCHEMA, writer.shards, {}, statistics or {})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    one = [(SIZES[rng.integers(3)], int(rng.integers(7, 30))) for _ in range(40)]
    two = [(SIZES[rng.integers(2)], int(rng.integers(7, 30))) for _ in range(11)]
    write(base / "one" / "train", "a", one, {"sum": [1.0, 2.0], "count": 40})
    write(base / "two" / "train", "b", two, {"sum": [0.5, 0.5], "count": 11})
    write(base / "two" / "val", "v", two[:3])
    return base, one, two


@pytest.fixture(scope="module")
def both(folders):
    base, _, _ = folders
    return DatasetMixture.open([Source(str(base / "one")), Source(str(base / "two"))], "train", SCHEMA)


def whole(step: int) -> None:
    """No windows."""


def growing(step: int) -> Window:
    return Window(2 + step // 4 % 3, 2)


def stream(mixture, start, stop, *, world_size=1, rank=0, micro_batch=4, workers=1, window=whole, shards=0, **options):
    members, _ = mixture.members(None if window is whole else LONGEST)
    plan = SamplePlan(
        members, global_batch=GLOBAL_BATCH, weights=mixture.weights, active_shards=shards, **{"seed": 3} | options
    )
    return Stream(
        mixture,
        plan=plan,
        batching=Batching(GLOBAL_BATCH, micro_batch, world_size),
        rank=rank,
        start_step=start,
        stop_step=stop,
        workers=workers,
        window=window,
    )


def seen(mixture, start, stop, world_size=1, **options):
    """Per step ``(uid, key, first frame of the window, frames)`` of all ranks together."""
    steps = {step: [] for step in range(start, stop)}
    for rank in range(world_size):
        for step, _, batch in stream(mixture, start, stop, world_size=world_size, rank=rank, **options):
            frames = batch["pose"][:, :, 0]
            length = [frames.shape[1]] * len(frames)
            steps[step] += zip(batch["uid"].tolist(), batch["key"], frames[:, 0].tolist(), length, strict=True)
    return list(steps.values())


@properties
@given(
    world_size=st.sampled_from(WORLD_SIZES),
    micro_batch=st.integers(1, 6),
    workers=st.integers(0, 3),
    seed=st.integers(0, 50),
    start=st.integers(0, 10**6),
    shards=st.integers(0, 2),
    order=st.sampled_from(["wrap", "drop", "weighted"]),
)
def test_mixed_bucketed_windowed_batches_depend_on_seed_and_step_only(
    both, world_size, micro_batch, workers, seed, start, shards, order
):
    mixture = DatasetMixture(both.sets, (0.7, 0.3) if order == "weighted" else None)
    options = {"seed": seed, "window": growing, "shards": shards, "drop_last": order == "drop"}
    alone = seen(mixture, start, start + 3, workers=0, **options)
    assert seen(mixture, start, start + 3, world_size, micro_batch=micro_batch, workers=workers, **options) == alone


@properties
@given(data=st.data(), seed=st.integers(0, 50), weighted=st.booleans())
def test_killed_and_resumed_at_other_world_sizes_nothing_is_lost_or_repeated(both, data, seed, weighted):
    mixture = DatasetMixture(both.sets, (0.4, 0.6) if weighted else None)
    steps, step, resumed = 10, 0, []
    whole = seen(mixture, 0, steps, seed=seed, window=growing)
    while step < steps:
        world_size = data.draw(st.sampled_from(WORLD_SIZES))
        options = {
            "world_size": world_size,
            "seed": seed,
            "window": growing,
            "micro_batch": data.draw(st.integers(1, 6)),
            "workers": data.draw(st.integers(0, 3)),
        }
        kill = data.draw(st.integers(step + 1, steps))
        resumed += seen(mixture, step, kill, **options)
        for rank in range(world_size):  # read ahead into steps that are then lost
            next(iter(stream(mixture, kill, steps + 2, rank=rank, **options)))
        step = kill
    assert resumed == whole


def test_each_sample_of_all_sets_comes_once_per_epoch_of_its_bucket(both):
    total = len(both)
    counts = Counter(key for batch in seen(both, 0, 3 * total, window=growing) for _, key, *_ in batch)
    # 3 * N steps of 6 are 18 epochs of N samples; a bucket may be ahead of another, never a sample of its bucket.
    assert set(counts) == {both.name(i)[1] for i in range(total)}
    assert len(counts) == total
    for bucket, members in by_bucket(both).items():
        found = {counts[both.name(int(i))[1]] for i in members}
        assert max(found) - min(found) <= 1, bucket


def by_bucket(mixture):
    joined = {}
    for members in mixture.members(shortest=1)[0]:
        for bucket, part in members.items():
            joined.setdefault(bucket, []).extend(part.indices.tolist())
    return joined


def test_buckets_are_the_sizes_that_a_batch_must_agree_in(both, folders):
    _, one, two = folders
    found = {bucket: len(indices) for bucket, indices in by_bucket(both).items()}
    assert found == Counter(size for size, _ in one + two)
    assert both.bucket_dims(windows=True) == ("h", "w"), "not L, which is padded, nor F, which is cut"
    # Whole clips must be of one length.
    whole_clips = {bucket for part in both.members()[0] for bucket in part}
    assert whole_clips == {(*size, frames) for size, frames in one + two}


def test_clips_shorter_than_the_window_are_left_out_and_counted(both, folders):
    _, one, two = folders
    members, short = both.members(shortest=12)
    assert short == sum(frames < 12 for _, frames in one + two)
    kept = {int(i) for part in members for m in part.values() for i in m.indices}
    assert kept == {i for i, (_, frames) in enumerate(one + two) if frames >= 12}


def test_indices_without_sizes_are_one_bucket_and_refuse_windows(tmp_path):
    write(tmp_path / "train", "c", [((4, 4), 9)] * 5)
    manifest = read_manifest(tmp_path / "train")
    for entry in manifest.shards:
        path = tmp_path / "train" / entry["name"]
        index = json.loads(index_path(path).read_bytes())
        del index["dims"]
        entry["idx_sha256"] = write_index(path, index)
    write_manifest(tmp_path / "train", SCHEMA, manifest.shards, {}, {})
    mixture = DatasetMixture([ShardSet.open(tmp_path / "train", SCHEMA)])
    assert [set(part) for part in mixture.members()[0]] == [{()}]
    with pytest.raises(SchemaError, match="do not say how long its clips are"):
        mixture.members(shortest=3)


def test_indices_count_through_the_sets_and_fingerprints_tell_them_apart(both, folders):
    base, one, _ = folders
    assert both.read(len(one)).key == "b000"
    assert both.name(len(one))[1] == "b000"
    with pytest.raises(IndexError):
        both.read(len(both))
    alone = DatasetMixture.open([Source(str(base / "one"))], "train", SCHEMA)
    assert alone.fingerprint == alone.sets[0].fingerprint
    weighted = DatasetMixture.open([Source(str(base / "one"), 1.0), Source(str(base / "two"), 2.0)], "train", SCHEMA)
    turned = DatasetMixture.open([Source(str(base / "two")), Source(str(base / "one"))], "train", SCHEMA)
    assert len({alone.fingerprint, both.fingerprint, weighted.fingerprint, turned.fingerprint}) == 4
    assert weighted.weights == (1.0, 2.0)


def test_statistics_of_the_sets_add_up(both):
    assert both.statistics == {"sum": [1.5, 2.5], "count": 51}


def test_statistics_of_unequal_shape_are_refused(tmp_path):
    for name, total in (("a", [1.0]), ("b", [1.0, 2.0])):
        write(tmp_path / name / "train", name, [((4, 4), 9)], {"sum": total})
    with pytest.raises(SchemaError, match="'sum' has shapes"):
        DatasetMixture.open([Source(str(tmp_path / "a")), Source(str(tmp_path / "b"))], "train", SCHEMA)


def made_by(directory, **encoders):
    write(directory / "train", directory.name, [((4, 4), 9)] * 3)
    entries = {
        role: {"name": "AutoencoderKLWan", "sha256": value, "dtype": "bfloat16"} for role, value in encoders.items()
    }
    write_manifest(directory / "train", SCHEMA, read_manifest(directory / "train").shards, entries, {})
    return Source(str(directory))


def test_shards_made_by_other_encoders_than_the_recipe_names_are_refused(tmp_path):
    source = made_by(tmp_path / "a", vae="ab12" * 16)
    mixture = DatasetMixture.open([source], "train", SCHEMA)
    mixture.check_encoders({"vae": {"name": "AutoencoderKLWan", "sha256": "ab12ab12", "dtype": "bfloat16"}})
    for wrong in ({"name": "AutoencoderKL"}, {"sha256": "cd12ab12"}, {"dtype": "float32"}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(SchemaError, match=f"made by a vae whose {name} is .*, expected {value}"):
            mixture.check_encoders({"vae": wrong})
    with pytest.raises(SchemaError, match="made by a text whose name is none"):
        mixture.check_encoders({"text": {"name": "UMT5EncoderModel"}})


def test_sets_of_one_run_must_be_made_by_the_same_encoders(tmp_path):
    sources = [made_by(tmp_path / "a", vae="ab" * 32), made_by(tmp_path / "b", vae="cd" * 32)]
    with pytest.raises(SchemaError, match=f"sha256 {'cd' * 32}, expected {'ab' * 32} as"):
        DatasetMixture.open(sources, "train", SCHEMA).check_encoders({})


def test_sets_whose_encoders_were_given_other_pictures_are_refused(tmp_path):
    squashed = {"name": "CLIPVisionModel", "sha256": "ab" * 32, "dtype": "float32", "input": "whole pictures"}
    for name, entry in (("new", squashed), ("old", {k: v for k, v in squashed.items() if k != "input"})):
        made_by(tmp_path / name)
        folder = tmp_path / name / "train"
        write_manifest(folder, SCHEMA, read_manifest(folder).shards, {"clip": entry}, {})
    new, old = (DatasetMixture.open([Source(str(tmp_path / name))], "train", SCHEMA) for name in ("new", "old"))
    both = DatasetMixture.open([Source(str(tmp_path / name)) for name in ("new", "old")], "train", SCHEMA)
    with pytest.raises(
        SchemaError,
        match=r"old/train: its clip was given nothing that .*, expected whole pictures as .*new/train; build",
    ):
        both.check_encoders({})
    check_inputs(new.sets[0], {"clip": "whole pictures", "vae": "nobody has it"})
    check_inputs(old.sets[0], {"clip": None})
    for shards, wanted in ((old, "whole pictures"), (new, None)):
        with pytest.raises(SchemaError, match=r"its clip was given .*, expected .* as the model's settings say; give"):
            check_inputs(shards.sets[0], {"clip": wanted})
    new.check_encoders({"clip": {"input": "whole pictures"}})


def test_shards_of_unknown_encoders_are_mixed_with_others_only_where_the_recipe_says_so(tmp_path):
    known, unknown = made_by(tmp_path / "a", vae="ab" * 32), made_by(tmp_path / "b")
    with pytest.raises(SchemaError, match=r"b/train: names no encoders.*those of .*a/train; .*unknown_encoders: true"):
        DatasetMixture.open([known, unknown], "train", SCHEMA).check_encoders({})
    DatasetMixture.open([known, replace(unknown, unknown_encoders=True)], "train", SCHEMA).check_encoders({})
    DatasetMixture.open([unknown, made_by(tmp_path / "c")], "train", SCHEMA).check_encoders({})


@pytest.mark.parametrize("other", ["a", "a/../a/", "link", "copy"])
def test_the_same_shards_twice_are_refused_however_they_are_spelled(tmp_path, other):
    source = made_by(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    with pytest.raises(ValueError, match=r"the same shards as .*a/train, so that each sample would come twice"):
        DatasetMixture.open([source, Source(f"{tmp_path}/{other}")], "train", SCHEMA)


def test_samples_of_another_size_than_the_recipe_fixes_are_named(tmp_path):
    write(tmp_path / "a/train", "a", [((4, 4), 9), ((4, 4), 5), ((4, 4), 5)])
    mixture = DatasetMixture.open([Source(str(tmp_path / "a"))], "train", SCHEMA)
    mixture.check_sizes({})
    mixture.check_sizes({"h": 4, "w": 4})
    named = r"train/\S+\.tar: sample 'a001' is 5x4 \(F, h\), expected 9x4 as the recipe says \(2 of 3 samples differ\)"
    with pytest.raises(SchemaError, match=named):
        mixture.check_sizes({"F": 9, "h": 4})


def test_a_held_out_split_is_taken_where_it_is(folders):
    base, _, _ = folders
    sources = [Source(str(base / "one")), Source(str(base / "two"))]
    assert len(DatasetMixture.open_where_there(sources, "val", SCHEMA)) == 3
    assert DatasetMixture.open_where_there(sources[:1], "val", SCHEMA) is None


def test_a_set_without_training_samples_is_an_error(folders, tmp_path):
    base, _, _ = folders
    with pytest.raises(DamagedError, match="manifest"):
        DatasetMixture.open([Source(str(base / "one")), Source(str(tmp_path))], "train", SCHEMA)
