"""The command that measures what was generated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stagecoach.trainer.cli import Outcome, command
from stagecoach.trainer.reporting.logs import process_rank


@dataclass
class WeightFlags:
    """The networks that metrics look through, as local files and folders; nothing is downloaded."""

    lpips: Annotated[Path | None, typer.Option(metavar="FILE", help="torchvision's file of AlexNet or VGG-16")] = None
    lpips_kind: Annotated[Literal["alex", "vgg"], typer.Option(help="which of them --lpips is")] = "alex"
    inception: Annotated[Path | None, typer.Option(metavar="FILE", help="TorchScript of Inception: FID, KID")] = None
    i3d: Annotated[Path | None, typer.Option(metavar="FILE", help="TorchScript of I3D: FVD")] = None
    clip: Annotated[Path | None, typer.Option(metavar="DIR", help="CLIP's folder")] = None
    dino: Annotated[Path | None, typer.Option(metavar="DIR", help="DINOv2's folder")] = None
    grounding_dino: Annotated[Path | None, typer.Option(metavar="DIR", help="GroundingDINO's folder")] = None
    arcface: Annotated[Path | None, typer.Option(metavar="FILE", help="ArcFace as .onnx")] = None
    detections: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of boxes by sample instead of --grounding-dino")
    ] = None
    pose_estimator: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR", help="DWPose's or RTMPose's .onnx, ViTPose's folder: poses and faces on frames"
        ),
    ] = None
    person_detector: Annotated[
        Path | None, typer.Option(metavar="FILE|DIR", help="of its persons: YOLOX's .onnx, a detector's folder")
    ] = None


@dataclass
class MeasureFlags:
    """What is measured and how."""

    metrics: Annotated[str, typer.Option(metavar="NAME,...|all", help="names of docs/evaluation.md")] = "all"
    seed: Annotated[int, typer.Option(min=0, help="of the bootstrap")] = 0
    force: Annotated[
        bool, typer.Option("--force", help="Fréchet distances of too few samples too; do not compare these")
    ] = False
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...; the GPU where there is one")] = None


def _show(result: dict[str, Any] | None) -> None:
    from stagecoach.trainer.evaluating.page import text

    if result is None:  # not the process that measures
        return
    print(text(result))


@command(_show)
def evaluate(
    generated: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="folders that launch/sample.py wrote, or of videos or pictures"),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="folder for result.json, samples.jsonl, evaluation.html")],
    weights: WeightFlags,
    flags: MeasureFlags,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE.jsonl", help="true samples by name: a folder as the generated one, a list, or shards"
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="DIR", help="other results for the same requests, compared sample by sample")
    ] = None,
    estimates: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="folder of <sample>/ with what detectors found on the results: faces.json, estimated_pose.json, "
            "cameras.json",
        ),
    ] = None,
) -> Outcome:
    """Measure generated samples, in the first of several processes; exits with 1 where one could not be read."""
    if process_rank():
        return Outcome()
    from stagecoach.data.progress import track
    from stagecoach.models.metrics.weights import WeightPaths
    from stagecoach.trainer.evaluating import evaluation

    names = evaluation.chosen_metrics(flags.metrics)
    settings = evaluation.Settings(names, WeightPaths(**vars(weights)), flags.device, flags.force, flags.seed)
    result = evaluation.evaluate(generated, output, settings, truth, against, estimates, track)
    failed = result["failed"] or result.get("against", {}).get("failed")
    return Outcome(result, 1 if failed else 0)
