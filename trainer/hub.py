"""A folder for the Hugging Face Hub: trained weights with recipe, card and pictures, and nothing of this machine."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stagecoach.data.files import replaced_directory, sha256_file, write_json
from stagecoach.data.pictures import FORMATS, find_pictures, read_picture, unread_pictures, warn_of_others
from stagecoach.data.reading import read_regular
from stagecoach.data.weight_files import CONFIG, EXPORTED
from stagecoach.models.common.licences import strictest
from stagecoach.models.weights.opening import Weights, Which, open_weights
from stagecoach.trainer.export import export_adapter
from stagecoach.trainer.redact import redact_values, without_places
from stagecoach.trainer.reporting.monitor import METRICS
from stagecoach.trainer.reporting.sinks import read_metrics

RECIPE, README, ABOUT, SAMPLES = "recipe.yaml", "README.md", "stagecoach.json", "samples"
MOST_PICTURES = 24
LARGEST = 64 << 20
"""Bytes of a recipe or of a result that is read."""

log = logging.getLogger(__name__)


def write_hub_folder(
    adapter: Path,
    output: Path,
    dtype: str = "bf16",
    which: Which = "raw",
    predecessor: Path | None = None,
    samples: Path | None = None,
    metrics: Path | None = None,
) -> dict[str, Any]:
    """Write the folder that goes up, ``adapter.safetensors``, ``recipe.yaml``, ``stagecoach.json``, ``README.md`` and
    ``samples/``, and return its files with sizes and hashes. The same content is the same bytes, and ``open_weights``
    takes the folder. Secrets are left out, and of each path or URL all but its last part.

    Args:
        adapter, which, predecessor: as of ``open_weights``.
        samples: folder whose pictures, without what their files say besides, are shown, the first 24 by name.
        metrics: ``result.json`` of an evaluation; without it the run's last validation of this stage.

    Raises ``ValueError`` where ``output`` holds something else, and for a result or a picture that is not readable.
    """
    weights = open_weights(adapter, which, predecessor=predecessor)
    numbers = _evaluated(metrics) if metrics is not None else _validated(weights)
    with replaced_directory(output, EXPORTED) as folder:
        metadata = export_adapter(adapter, folder / EXPORTED, dtype, "adapter", which, predecessor, public=True)
        recipe = _recipe(weights)
        if recipe is not None:
            (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        about = _about(weights, metadata, numbers)
        write_json(folder / ABOUT, about)
        shown = [] if samples is None else _copy_pictures(samples, folder / SAMPLES)
        (folder / README).write_text(_readme(weights, about, recipe is not None, shown))
    return {"files": list_folder(output), "metadata": metadata}


def list_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file, by its name in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files
    }


def push(folder: Path, repository: str) -> str:
    """Upload the folder to ``OWNER/NAME``, which is made private where it is not there yet, with the token that
    huggingface_hub finds; the URL of the commit. Raises ``ValueError``."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload of Stagecoach"))
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{folder}: not uploaded to {repository} ({reason}); the folder is complete, so it can be pushed again "
            "once the hub is reached with a token that may write there (hf auth login)"
        ) from error


def _about(weights: Weights, metadata: Mapping[str, str], numbers: Mapping[str, Any]) -> dict[str, Any]:
    card = weights.card
    return {
        "family": card.family,
        "size": card.size,
        "stage": card.stage,
        "stage_name": card.stage_name,
        "steps": card.steps,
        "dtype": metadata["dtype"],
        "sha256": {
            "adapter": card.sha256,
            "base": card.base,
            "predecessor": card.predecessor,
            "recipe": card.recipe,
            "data": card.settings.get("shards"),
        },
        "version": card.version,
        **numbers,
    }


def _run(weights: Weights) -> Path | None:
    """The run folder that an adapter or a checkpoint lies in; None for a file."""
    above = {"adapter": 1, "checkpoint": 2}.get(weights.kind)
    return None if above is None or weights.source is None else weights.source.absolute().parents[above]


def _recipe(weights: Weights) -> dict[str, Any] | None:
    """That of the checkpoint, the run or the hub folder, without where it ran; None for a file alone."""
    assert weights.source is not None
    run, beside = _run(weights), weights.source.parent
    places = [weights.source / CONFIG, *([run / RECIPE] if run else [])]
    places += [beside / RECIPE] if (beside / ABOUT).is_file() else []
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        return None
    try:
        found = yaml.safe_load(read_regular(place, LARGEST))
    except yaml.YAMLError as error:
        raise ValueError(f"{place}: not readable as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place}: holds a {type(found).__name__}, expected a recipe")
    found.pop("run", None)
    return without_places(redact_values(found))


def _evaluated(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path, LARGEST))
        metrics, samples = found["metrics"], found["samples"]
        if not all(isinstance(value["mean"], int | float) for value in metrics.values()):
            raise TypeError("a metric has no mean")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no result of an evaluation ({error!r}), expected result.json of evaluate") from error
    return {"evaluated_samples": samples, "metrics": without_places(redact_values(metrics))}


def _validated(weights: Weights) -> dict[str, Any]:
    """The run's last validation numbers of the stage; none where there is no run."""
    run, last = _run(weights), dict[str, Any]()
    if run is not None and (run / METRICS).is_file():
        for record in read_metrics(run / METRICS):
            if record["stage"] == weights.stage and record["step"] <= weights.card.steps:
                last |= {name: value for name, value in record.items() if name.startswith("val_")}
    return {"metrics": {name: {"mean": value} for name, value in sorted(last.items()) if value is not None}}


def _copy_pictures(source: Path, folder: Path) -> list[str]:
    """As PNG, so that no place, camera or name that a file says goes with them."""
    found, others = find_pictures(source, below=True)
    if not found:
        raise ValueError(f"{source}: holds no picture, expected {FORMATS}")
    warn_of_others(source, unread_pictures(others))
    if len(found) > MOST_PICTURES:
        log.warning(f"{source}: holds {len(found)} pictures, of which the first {MOST_PICTURES} by name are shown")
    folder.mkdir()
    names = []
    for path in found[:MOST_PICTURES]:
        name = "-".join(path.relative_to(source).with_suffix("").parts) + ".png"
        read_picture(path).save(folder / name)
        names.append(name)
    return names


def _readme(weights: Weights, about: Mapping[str, Any], recipe: bool, pictures: Sequence[str]) -> str:
    from huggingface_hub import ModelCardData

    card, parts = weights.card, weights.family.parts.get(weights.size, ())
    licence = strictest(parts)
    said: dict[str, Any] = {}
    if licence is not None:
        said["license"] = licence.id
        if licence.title:
            said |= {"license_name": licence.title, "license_link": licence.link}
    if bases := [part.hub for part in parts if part.base]:
        said |= {"base_model": bases[0] if len(bases) == 1 else bases, "base_model_relation": "adapter"}
    data = ModelCardData(library_name="stagecoach", tags=["diffusion", "adapter", card.family], **said)
    hashes = about["sha256"]
    rows = [(what, f"`{value}`") for what, value in hashes.items() if value]
    blocks = [
        f"---\n{data.to_yaml()}\n---",
        f"# {card.family} {card.size}, stage {card.stage} ({card.stage_name})",
        f"What {card.steps:,} steps of Stagecoach {card.version} trained, in {about['dtype']}, without the base. To "
        "open it:",
        "```python\nfrom stagecoach.models.weights import load_network, open_weights\n\n"
        'weights = open_weights("FOLDER")  # this repository, downloaded\n'
        'network = load_network(weights, base="BASE")\n```',
    ]
    if parts:
        lines = [(part.what, part.hub, part.licence.name) for part in parts]
        blocks += [
            "## Licence",
            f"The strictest of the weights that it needs: {licence.name if licence else ''}. The data have theirs.",
            _table(("part", "published as", "licence"), lines),
        ]
    else:
        blocks += ["## Licence", "No published weights are known for this size; state the licence before you share it."]
    blocks += ["## Training", _table(("sha256 of", ""), rows)]
    blocks += [f"`{RECIPE}` is the recipe, without where it ran."] if recipe else []
    if about["metrics"]:
        blocks += ["## Metrics", _metrics_table(about["metrics"])]
    if pictures:
        blocks += ["## Samples", *(f"![{Path(name).stem}]({SAMPLES}/{name})" for name in pictures)]
    return "\n\n".join(blocks) + "\n"


def _metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    def row(name: str, value: Mapping[str, Any]) -> tuple[str, ...]:
        interval = f"{value['low']:.4g} .. {value['high']:.4g}" if value.get("low") is not None else ""
        rest = (value.get(key, "") for key in ("n", "unit", "better"))
        return (name, f"{value['mean']:.4g}", interval, *map(str, rest))

    header = ("metric", "mean", "95 % interval", "n", "unit", "better")
    return _table(header, [row(name, value) for name, value in metrics.items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
