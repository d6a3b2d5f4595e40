"""The same data set for any workers; what is bad stops the build or is listed; what is taken is not touched."""

import json
import shutil

import numpy as np
import pytest

from stagecoach.data.building.build import build, kind_of
from stagecoach.data.building.jobs import RawError, RawItem, Statistics
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.building.partition import assign_splits, divide
from stagecoach.data.building.worker_pool import WorkerError
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.files import TEMPORARY
from stagecoach.data.streaming.dataset import ShardSet
from tests.data.building.toy_job import SCHEMA, ToyJob, hashes

OPTIONS = {"holdout": 0.3}


def run(output, job=None, worker_rank=None, **options):
    return build(
        job or ToyJob(), output, BuildOptions(**{**OPTIONS, **options}), worker_rank=worker_rank or WorkerRank()
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The data set of twelve items, and its hashes."""
    output = tmp_path_factory.mktemp("undisturbed") / "shards"
    run(output)
    return output, hashes(output)


def samples(output) -> dict:
    sets = [ShardSet.open(path, SCHEMA) for path in (output / "train", output / "val") if path.exists()]
    return {s.key: s for shards in sets for s in (shards.read(i) for i in range(len(shards)))}


def test_every_item_becomes_one_sample_of_its_split(undisturbed):
    output, _ = undisturbed
    found = samples(output)
    assert sorted(found) == [f"item{n:03d}" for n in range(12)]
    for key, sample in found.items():
        number = int(key[4:])
        assert sample.arrays["place"] == number
        np.testing.assert_array_equal(
            sample.arrays["values"], np.random.default_rng(number).random((number % 3 + 1, 4)).astype(np.float32)
        )
    splits = assign_splits(ToyJob().items()[0], 0.3)
    val = ShardSet.open(output / "val", SCHEMA)
    assert {val.read(i).key for i in range(len(val))} == {key for key, split in splits.items() if split == "val"}


@pytest.mark.parametrize("number", range(8))
def test_one_item_alone_is_trained_on_whatever_its_hash(number):
    items = [RawItem(f"clip{number}", None, None)]
    assert assign_splits(items, 0.99) == {f"clip{number}": "train"}
    assert assign_splits([*items, RawItem("other", "train", None)], 0.99)[f"clip{number}"] == "val"
    assert set(assign_splits([*items, RawItem("clip", None, None)], 0.99).values()) == {"train", "val"}


def test_a_finished_build_repeated_says_so_and_one_of_other_settings_is_refused(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "shards")
    before = hashes(tmp_path / "shards")
    report = run(tmp_path / "shards")
    assert (report.finished, report.encoded) == (True, 0)
    assert "is there already" in report.message
    assert hashes(tmp_path / "shards") == before
    with pytest.raises(ValueError, match="holds finished shards; give another folder, or --replace"):
        run(tmp_path / "shards", ToyJob(count=11))
    assert run(tmp_path / "shards", replace=True).encoded == 12


def test_an_item_that_is_not_finite_is_named_or_left_out(tmp_path, monkeypatch):
    encode = ToyJob.encode

    def spoiled(self, items, prepared):
        for item, sample in zip(items, encode(self, items, prepared), strict=True):
            if item.key == "item004":
                sample.arrays["values"][0, 2] = np.nan
            yield sample

    monkeypatch.setattr(ToyJob, "encode", spoiled)
    with pytest.raises(RawError, match=r"sample 'item004': field 'values' holds nan at \[0, 2\]"):
        run(tmp_path / "shards")
    report = run(tmp_path / "shards", skip_bad=True)
    assert (report.skipped, sum(report.samples.values())) == (1, 11)
    assert "'values' holds nan at [0, 2]" in next(iter(report.reasons))


def test_statistics_of_parts_are_added(undisturbed):
    output, _ = undisturbed
    train = ShardSet.open(output / "train", SCHEMA)
    values = [train.read(i).arrays["values"].astype(np.float64).sum(0) for i in range(len(train))]
    np.testing.assert_allclose(train.statistics["sum"], np.sum(values, 0), rtol=1e-12)
    assert train.statistics["count"] == len(train)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_data_set_does_not_depend_on_the_number_of_workers(undisturbed, tmp_path, size):
    reports = [run(tmp_path / "shards", worker_rank=WorkerRank(rank, size)) for rank in range(size)]
    assert hashes(tmp_path / "shards") == undisturbed[1]
    assert [report.finished for report in reports].count(True) >= 1
    first = reports[0]
    assert not first.finished
    assert "have" not in first.samples
    assert f"worker 0 of {size} has made its parts" in first.message
    assert sum(report.encoded for report in reports) == 12


def test_local_workers_make_the_same_data_set(undisturbed, tmp_path):
    bars = []

    def track(items, title, total):
        count = 0
        for item in items:
            count += 1
            yield item
        bars.append((title, count, total))

    report = build(ToyJob(), tmp_path / "shards", BuildOptions(workers=3, **OPTIONS), track)
    assert hashes(tmp_path / "shards") == undisturbed[1]
    assert (report.encoded, report.finished, report.more) == (12, True, {"counted": 12})
    assert bars == [("verifying", 0, 0), ("checking", 12, 12), ("encoding", 12, 12)]


def test_a_part_makes_shards_of_limited_size(tmp_path):
    report = run(tmp_path / "shards", part_items=6, max_shard_bytes=10240, holdout=0.0)
    assert report.shards["train"] > 2
    assert all(tar.stat().st_size <= 10240 for tar in tmp_path.rglob("*.tar"))
    assert len(samples(tmp_path / "shards")) == 12


def test_what_is_bad_is_left_out_listed_and_counted_by_reason(tmp_path):
    job = ToyJob(bad=("item001", "item006"), suspect=("item003",), unusable=1)
    report = run(tmp_path / "shards", job, skip_bad=True)
    assert report.skipped == 4
    assert {kind_of(reason): count for reason, count in report.reasons.items()} == {
        "cut after # bytes": 2,
        "entry # is empty": 1,
        "# bytes found": 1,
    }
    listed = [json.loads(line) for line in (tmp_path / "shards/skipped.jsonl").read_text().splitlines()]
    assert listed[0] == {"key": "entry 0", "reason": "list: entry 0 is empty"}
    assert set(report.reasons) <= {line["reason"] for line in listed}
    assert {entry["key"] for entry in listed[1:]} == {"item001", "item003", "item006"}
    assert len(samples(tmp_path / "shards")) == 9


@pytest.mark.parametrize(
    ("job", "message", "workers"),
    [
        (ToyJob(bad=("item004",)), r"item004\.bin: cut after 4 bytes", 1),
        (ToyJob(bad=("item004",)), r"worker \d of 2: .*item004\.bin: cut after 4 bytes", 2),
        (ToyJob(suspect=("item002",)), "7 bytes found", 1),
        (ToyJob(unusable=1), "entry 0 is empty", 1),
    ],
)
def test_a_bad_item_stops_the_build(tmp_path, job, message, workers):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "deep/shards", job, workers=workers)
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))
    assert not list(tmp_path.rglob("manifest.json")) or job.bad, "all items are looked at before the first is encoded"


def test_a_build_that_a_bad_item_stopped_goes_on_without_it_or_with_it_repaired(tmp_path, undisturbed):
    job = ToyJob(bad=("item010",))
    with pytest.raises(RawError):
        run(tmp_path / "shards", job)
    again = ToyJob()
    report = run(tmp_path / "shards", again)
    assert 0 < report.encoded < 12
    assert hashes(tmp_path / "shards") == undisturbed[1]
    with pytest.raises(RawError):
        run(tmp_path / "without", job)
    assert run(tmp_path / "without", job, skip_bad=True).skipped == 1


def test_an_item_that_was_left_out_is_taken_when_it_may_no_longer_be_left_out(tmp_path, undisturbed):
    run(tmp_path / "shards", ToyJob(bad=("item003",)), worker_rank=WorkerRank(0, 2), skip_bad=True)
    run(tmp_path / "shards", ToyJob(bad=("item003",)), worker_rank=WorkerRank(0, 2), skip_bad=True)
    run(tmp_path / "shards")
    assert hashes(tmp_path / "shards") == undisturbed[1]


def test_nothing_left_for_training_is_an_error_and_ends_the_build(tmp_path):
    job = ToyJob(4, bad=tuple(f"item{n:03d}" for n in range(4)))
    with pytest.raises(RawError, match=r"no usable item for training among 4; the first one left out: .*item00"):
        run(tmp_path / "shards", job, skip_bad=True)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_list_is_an_error(tmp_path):
    with pytest.raises(RawError, match="no usable item among 1; the first one left out: list: entry 0"):
        run(tmp_path / "shards", ToyJob(0, unusable=1), skip_bad=True)


def test_finished_shards_are_replaced_only_on_demand_and_stay_until_the_new_ones_are_whole(tmp_path, undisturbed):
    output = tmp_path / "shards"
    run(output, ToyJob(30, bad=("item001",)), skip_bad=True)
    before = hashes(output)
    with pytest.raises(ValueError, match="shards: holds finished shards; give another folder, or --replace"):
        run(output)
    assert hashes(output) == before
    run(output, worker_rank=WorkerRank(0, 2), replace=True)
    now = hashes(output)
    assert before.items() <= now.items()
    with pytest.raises(ValueError, match=r"--replace .*the build that was begun next to them goes on"):
        run(output, worker_rank=WorkerRank(1, 2))
    report = run(output, worker_rank=WorkerRank(1, 2), replace=True)
    assert report.encoded < 12
    assert hashes(output) == undisturbed[1], "nothing of the old set stays, also not its list of what was left out"


def test_a_late_worker_finds_the_data_set_finished(tmp_path, undisturbed):
    for rank in range(20):
        report = run(tmp_path / "shards", worker_rank=WorkerRank(rank, 20))
    assert report.finished
    assert report.message == "the data set of this build is there already"
    again = run(tmp_path / "shards", worker_rank=WorkerRank(3, 20), replace=True)
    assert (again.finished, again.encoded) == (True, 0)
    assert hashes(tmp_path / "shards") == undisturbed[1]


def test_a_build_with_other_settings_is_refused_by_name_or_begun_anew(tmp_path, undisturbed):
    output = tmp_path / "shards"
    run(output, ToyJob(version=2), worker_rank=WorkerRank(0, 2))
    with pytest.raises(
        ValueError,
        match=r"job.json: a build with other settings was begun here: holdout 0.3 \(now "
        r"0.2\); items_sha256 .*; version 2 \(now 1\); give the same .* --replace",
    ):
        run(output, holdout=0.2)
    assert len(list((output / ".build/parts").iterdir())) > 0
    report = run(output, replace=True)
    assert report.encoded == 12
    assert hashes(output) == undisturbed[1]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_other_files_is_not_touched(tmp_path, replace):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds files that are no shards"):
        run(tmp_path, replace=replace)
    with pytest.raises(ValueError, match="a file found, expected a folder"):
        run(tmp_path / "notes.txt", replace=replace)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_parts_of_different_encoders_make_no_data_set(tmp_path):
    run(tmp_path / "shards", ToyJob(encoder="one"), worker_rank=WorkerRank(0, 2))
    with pytest.raises(ValueError, match=r"made by encoders .*two.* by .*one"):
        run(tmp_path / "shards", ToyJob(encoder="two"), worker_rank=WorkerRank(1, 2))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"deadly": "item007"}, r"worker \d of 2 \(process \d+\) was killed by SIGKILL.*start the same command again"),
        ({"failing": "item007"}, r"worker \d of 2: RuntimeError: a fault of the encoder"),
    ],
)
def test_a_worker_that_dies_or_fails_stops_all_and_is_named(tmp_path, undisturbed, fault, message):
    with pytest.raises(WorkerError, match=message):
        run(tmp_path / "shards", ToyJob(**fault), workers=2)
    assert not list(tmp_path.rglob("manifest.json")) or not list(tmp_path.glob("shards/*/manifest.json"))
    run(tmp_path / "shards")
    assert hashes(tmp_path / "shards") == undisturbed[1]


def test_an_item_stays_in_its_split_when_others_come():
    few, many = ([RawItem(f"a{i}", None, i) for i in range(n)] for n in (200, 400))
    assert assign_splits(few, 0.1).items() <= assign_splits(many, 0.1).items()
    assert 20 < list(assign_splits(many, 0.1).values()).count("val") < 65


@pytest.mark.parametrize(("count", "holdout", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.0, 0)])
def test_neither_split_is_empty_unless_asked_for(count, holdout, expected):
    found = list(assign_splits([RawItem(f"b{i}", None, i) for i in range(count)], holdout).values())
    assert found.count("val") == expected


def test_parts_hold_neighbours_of_one_split():
    division = divide(ToyJob(40), BuildOptions(part_items=4))
    splits = assign_splits(ToyJob(40).items()[0], 0.1)
    for part in division.parts:
        keys = [item.key for item in part.items]
        assert keys == sorted(keys)
        assert {splits[key] for key in keys} == {part.split}
        assert len(keys) <= 4
    assert sorted(item.key for part in division.parts for item in part.items) == sorted(splits)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([RawItem("a.b", None, 0)], "has a dot"),
        ([RawItem("a", None, 0)] * 2, "is that of 2 items"),
        ([RawItem("a", "../train", 0)], "expected a name of letters"),
    ],
)
def test_items_that_have_no_worker_rank_in_shards_are_refused(monkeypatch, items, message):
    monkeypatch.setattr(ToyJob, "items", lambda self: (items, []))
    with pytest.raises(ValueError, match=message):
        divide(ToyJob(), BuildOptions())


def test_statistics_of_other_lengths_or_names_are_not_added():
    assert Statistics.merge([]) == {}
    assert Statistics.merge([{"a": 1, "b": [[1, 2]]}, {"a": 2.5, "b": [[3, 4]]}]) == {"a": 3.5, "b": [[4, 6]]}
    for other in ({"a": 1}, {"a": 1, "b": [[1]]}, {"a": 1, "b": 2}):
        with pytest.raises(ValueError, match="different builds"):
            Statistics.merge([{"a": 1, "b": [[1, 2]]}, other])


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("/raw/a_1.mp4: 3 frames found, expected at least 5; take a longer video", "# frames found"),
        ("/raw/b.txt:12: focal length -0.5e-3 found, expected more", "focal length # found"),
        ("/raw/c.mp4: not decodable after 0 frames (bad: '/raw/c.mp4'), expected 5", "not decodable after # frames"),
    ],
)
def test_reasons_are_counted_without_what_tells_files_apart(reason, kind):
    assert kind_of(reason) == kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 1.0}, "holdout 1.0"),
        ({"workers": 0}, "workers 0"),
        ({"part_items": 0}, "part items 0"),
        ({"max_shard_bytes": 0}, "max shard bytes 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BuildOptions(**options)
