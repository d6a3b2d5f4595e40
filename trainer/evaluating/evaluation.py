"""Generated samples against true ones, and against those of another model: numbers per sample and over all."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from stagecoach.data.encoding.encoders import hash_files
from stagecoach.data.files import atomic_file, write_json
from stagecoach.data.progress import Track, untracked
from stagecoach.models.metrics.measuring import COMPARED, OF_SETS, Value, measure
from stagecoach.models.metrics.metric import Absent, measured
from stagecoach.models.metrics.reading import find_samples, read_sample
from stagecoach.models.metrics.record import Record, trivial
from stagecoach.models.metrics.registry import METRICS
from stagecoach.models.metrics.sets import SetMetrics
from stagecoach.models.metrics.statistics import compare, summarise
from stagecoach.models.metrics.weights import Models, WeightPaths
from stagecoach.trainer.evaluating.page import page, small_pictures
from stagecoach.trainer.evaluating.truth import Truth, open_truth
from stagecoach.trainer.settings import did_you_mean

log = logging.getLogger(__name__)
NAN = float("nan")
ALL = "all"


@dataclass
class Measurements:
    """Of one side: values, reasons for their absence and the trivial predictor's values, by sample and metric; what
    could not be read; the metrics of the whole set."""

    paths: dict[str, Path] = field(default_factory=dict)
    values: dict[str, dict[str, Value]] = field(default_factory=dict)
    absent: dict[str, dict[str, str]] = field(default_factory=dict)
    baseline: dict[str, dict[str, Value]] = field(default_factory=dict)
    seeds: dict[str, int | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    sets: dict[str, tuple[float, int, list[float]] | Absent] = field(default_factory=dict)

    @property
    def samples(self) -> list[str]:
        return list(self.paths)


def chosen_metrics(words: str) -> tuple[str, ...]:
    """Names of the registry between commas, or ``all``. Raises ``ValueError`` for one that is unknown."""
    if words == ALL:
        return tuple(METRICS)
    names = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metric {name!r} is unknown{did_you_mean(name, METRICS)}")
    if not names:
        raise ValueError(f"no metric is named, expected some of {', '.join(METRICS)}, or {ALL}")
    return names


def measure_folders(
    folders: Iterable[Path],
    truth: Truth,
    names: Sequence[str],
    models: Models,
    estimates: Path | None = None,
    force: bool = False,
    track: Track = untracked,
) -> Measurements:
    """All samples of the ``folders``. One that cannot be read is a line of the log and of ``failed``; the others go on.
    ``estimates``: a folder with more files by sample, of detectors and estimators. Raises ``ValueError`` for a folder
    without a sample, and where two samples have one name."""
    paths: dict[str, Path] = {}
    for folder in folders:
        for name, path in find_samples(folder).items():
            if name in paths:
                raise ValueError(f"{path}: {paths[name]} has the same name, expected one sample of each")
            paths[name] = path
    found, sets = Measurements(dict(sorted(paths.items()))), SetMetrics(names, models, force)
    for name in track(found.samples, "samples", len(paths)):
        try:
            generated, true = read_sample(name, paths[name]), truth(name) or Record(name)
            if estimates is not None and (estimates / name).is_dir():
                generated = _completed(generated, read_sample(name, estimates / name))
        except (ValueError, OSError) as error:
            found.failed[name] = str(error)
            log.error(f"{name} is left out: {error}")
            continue
        found.seeds[name] = generated.seed
        results = measure(generated, true, models, names)
        found.values[name] = {k: v for k, v in results.items() if not isinstance(v, Absent)}
        found.absent[name] = {k: v.reason for k, v in results.items() if isinstance(v, Absent)}
        held = measure(trivial(true), true, models, [k for k in found.values[name] if k in COMPARED])
        found.baseline[name] = {k: v for k, v in held.items() if not isinstance(v, Absent)}
        sets.add(generated, true)
    found.sets = sets.result()
    return found


def _completed(record: Record, more: Record) -> Record:
    return replace(
        record,
        **{
            f.name: getattr(more, f.name)
            for f in fields(Record)
            if f.name != "facts" and getattr(more, f.name) is not None
        },
    )


def summary(found: Measurements, names: Iterable[str], seed: int = 0) -> tuple[dict[str, Any], dict[str, str]]:
    """What result.json says of each metric, and why others are absent."""
    numbers: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name in names:
        declared = METRICS[name]
        said = {"unit": declared.unit, "better": declared.better}
        if name in OF_SETS:
            value = found.sets.get(name, Absent("no sample"))
            if isinstance(value, Absent):
                absent[name] = value.reason
            else:
                numbers[name] = {"mean": value[0], "n": value[1], "halves": value[2], **said}
            continue
        pairs = [found.values.get(sample, {}).get(name, (NAN, 1.0)) for sample in found.samples]
        result = measured(summarise, [total for total, _ in pairs], [count for _, count in pairs], seed)
        if isinstance(result, Absent):
            reasons = Counter(r[name] for r in found.absent.values() if name in r)
            absent[name] = reasons.most_common(1)[0][0] if reasons else "no sample could be read"
            continue
        held = [v[name] for v in found.baseline.values() if name in v]
        baseline = sum(v for v, _ in held) / sum(n for _, n in held) if held else None
        numbers[name] = {**asdict(result), **said, "baseline": baseline}
    return numbers, absent


def against(a: Measurements, b: Measurements, names: Iterable[str], seed: int = 0) -> dict[str, Any]:
    """Of each metric that both have: A less B sample by sample (of one name and seed), and who is ahead where the
    interval excludes 0."""
    result: dict[str, Any] = {}
    for name in names:
        if name in OF_SETS:
            pair = [side.sets.get(name) for side in (a, b)]
            if all(isinstance(value, tuple) for value in pair):
                result[name] = {"a": pair[0][0], "b": pair[1][0], "ahead": None}  # type: ignore[index]
            continue
        sides = [
            {(s, side.seeds[s]): v[name][0] / v[name][1] for s, v in side.values.items() if name in v}
            for side in (a, b)
        ]
        paired = measured(compare, sides[0], sides[1], seed)
        if isinstance(paired, Absent):
            continue
        difference, higher = paired.difference, METRICS[name].higher_is_better
        clear = difference.low > 0 or difference.high < 0
        ahead = ("a" if (difference.mean > 0) == higher else "b") if clear and higher is not None else None
        result[name] = {**asdict(paired), "unit": METRICS[name].unit, "better": METRICS[name].better, "ahead": ahead}
    return result


@dataclass(frozen=True)
class Settings:
    """Which metrics, through which weights, on which device (None: the GPU where there is one); ``force``: Fréchet
    distances of too few samples too; ``seed``: of the bootstrap."""

    names: tuple[str, ...]
    weights: WeightPaths = field(default_factory=WeightPaths)
    device: str | None = None
    force: bool = False
    seed: int = 0


def evaluate(
    generated: Sequence[Path],
    output: Path,
    settings: Settings,
    truth: Path | None = None,
    other: Path | None = None,
    estimates: Path | None = None,
    track: Track = untracked,
) -> dict[str, Any]:
    """Write ``result.json``, ``samples.jsonl`` and ``evaluation.html`` into ``output`` and return what the first holds.
    ``other``: results for the same requests, compared sample by sample. Raises ``ValueError``."""
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    models, names, seed = Models(settings.weights, device), settings.names, settings.seed
    true = open_truth(truth)
    mine = measure_folders(generated, true, names, models, estimates, settings.force, track)
    numbers, absent = summary(mine, names, seed)
    result: dict[str, Any] = {
        "version": 1,
        "generated": [str(path) for path in generated],
        "truth": None if truth is None else str(truth),
        "samples": len(mine.samples),
        "failed": mine.failed,
        "weights": _weights(settings.weights),
        "metrics": numbers,
        "absent": absent,
    }
    if other is not None:
        theirs = measure_folders([other], true, names, models, estimates, settings.force, track)
        result["against"] = {
            "generated": str(other),
            "failed": theirs.failed,
            "means": {name: value["mean"] for name, value in summary(theirs, names, seed)[0].items()},
            "metrics": against(mine, theirs, names, seed),
        }
    lines = [_line(mine, sample) for sample in mine.samples]
    write_json(output / "result.json", result)
    with atomic_file(output / "samples.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    with atomic_file(output / "evaluation.html", "w") as file:
        file.write(page(result, lines, small_pictures(mine.paths)))
    log.info(f"{output}: result.json, samples.jsonl, evaluation.html")
    return result


def _weights(weights: WeightPaths) -> dict[str, str]:
    """sha256 of what numbers depend on."""
    paths = {name: path for name, path in vars(weights).items() if isinstance(path, Path) and path.exists()}
    return {name: hash_files([path] if path.is_file() else sorted(path.iterdir())) for name, path in paths.items()}


def _line(found: Measurements, sample: str) -> dict[str, Any]:
    if sample in found.failed:
        return {"sample": sample, "error": found.failed[sample]}

    def means(values: Mapping[str, Value]) -> dict[str, float]:
        return {name: total / count for name, (total, count) in values.items()}

    return {
        "sample": sample,
        "metrics": means(found.values[sample]),
        "counts": {name: count for name, (_, count) in found.values[sample].items() if count != 1},
        "baseline": means(found.baseline[sample]),
        "absent": found.absent[sample],
    }
