"""The command that writes what was trained for others: one file, a folder for a hub, LoRA for diffusers, ONNX."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stagecoach.trainer.cli import Outcome, command

To = Literal["adapter", "hub-folder", "diffusers-lora", "onnx"]


@dataclass
class HubFlags:
    """Of --to hub-folder."""

    samples: Annotated[Path | None, typer.Option(metavar="DIR", help="pictures to show on the card")] = None
    metrics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="result.json of evaluate, instead of the run's last validation")
    ] = None
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="list what would go up there; with --yes upload it")
    ] = None
    yes: Annotated[bool, typer.Option("--yes", help="upload to --push, with the token of hf auth login")] = False


@dataclass
class OnnxFlags:
    """Of --to onnx."""

    component: Annotated[
        str | None, typer.Option(metavar="NAME", help="what of the family; a wrong name lists those that there are")
    ] = None
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|SETTING=PATH",
            help="of a component that needs it, if not where it was trained on; of several parts, each by its setting; "
            "repeatable",
        ),
    ] = None
    vae: Annotated[Path | None, typer.Option(metavar="DIR", help="the VAE, for vae_decoder")] = None
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="at which a component of fixed length is written")
    ] = None
    int8: Annotated[bool, typer.Option("--int8", help="products with matrices of weights in 8 bits")] = False


def _show(result: dict[str, Any]) -> None:
    said = result["metadata"]
    what = f"{result['output']}: {said['family']} {said['size']} stage {said['stage']} in {said['dtype']}"
    if "files" in result:
        print(what)
        for name, file in result["files"].items():
            print(f"  {file['bytes']:>14,}  {name}")
        if result["push"]:
            done = f"uploaded, {result['commit']}" if result["commit"] else "nothing was uploaded; --yes uploads it"
            print(f"{result['push']}: {done}")
        return
    print(f"{what}, {result['bytes'] / 1e6:,.1f} MB, sha256 {result['sha256']}")
    for name, difference in result.get("differences", {}).items():
        absolute, relative = difference["absolute"], difference["relative"]
        print(f"  {name}: at most {absolute:.3g} from PyTorch's, {relative:.3%} of the largest value")


@command(_show)
def export(
    adapter: Annotated[
        Path,
        typer.Option(
            metavar="DIR|FILE",
            help="a run's stage<N>/adapter, one of its checkpoints, an exported file or hub folder, a file that the "
            "method's authors published",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(metavar="FILE|DIR", help="made or replaced: a .safetensors, a .onnx, for hub-folder a folder"),
    ],
    hub: HubFlags,
    onnx: OnnxFlags,
    to: Annotated[
        To,
        typer.Option(
            help="adapter: all tensors in one file; hub-folder: with recipe, card and pictures; diffusers-lora: the "
            "LoRA alone, for load_lora_weights of a pipeline; onnx: one component"
        ),
    ] = "adapter",
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None, typer.Option(help="of the tensors; bf16 if not given; not of onnx")
    ] = None,
    average: Annotated[bool, typer.Option("--average", help="of a checkpoint, its moving average")] = False,
    predecessor: Annotated[
        Path | None,
        typer.Option(
            metavar="ADAPTER", help="what a checkpoint's stage started from, where it is not found in the run"
        ),
    ] = None,
) -> Outcome:
    """Write an adapter, or the weights in a checkpoint, for others: a file, a hub, diffusers, ONNX."""
    _check(to, hub, onnx, dtype)
    which: Literal["raw", "ema"] = "ema" if average else "raw"
    if to == "hub-folder":
        from stagecoach.trainer.hub import push, write_hub_folder

        result = write_hub_folder(adapter, output, dtype or "bf16", which, predecessor, hub.samples, hub.metrics)
        commit = push(output, hub.push) if hub.push is not None and hub.yes else None
        return Outcome({"output": str(output), **result, "push": hub.push, "commit": commit})
    from stagecoach.data.files import sha256_file
    from stagecoach.trainer.export import export_adapter, export_onnx

    if to == "onnx":
        assert onnx.component is not None
        base, vae, frames = _base(onnx.base), onnx.vae, onnx.frames
        result = export_onnx(adapter, output, onnx.component, onnx.int8, which, predecessor, base, vae, frames)
    else:
        result = {"metadata": export_adapter(adapter, output, dtype or "bf16", to, which, predecessor)}
    size = output.stat().st_size
    return Outcome({"output": str(output), "bytes": size, "sha256": sha256_file(output), **result})


def _base(given: list[str] | None) -> str | dict[str, str] | None:
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    if wrong := [text for text in given if "=" not in text]:
        raise typer.BadParameter(f"--base {wrong[0]}, expected SETTING=PATH next to others, as weights.motion=DIR")
    return dict(text.split("=", 1) for text in given)


def _check(to: To, hub: HubFlags, onnx: OnnxFlags, dtype: str | None) -> None:
    """Raises ``typer.BadParameter`` for a flag that would not count."""
    for target, flags in (("hub-folder", hub), ("onnx", onnx)):
        for name, value in asdict(flags).items():
            if to != target and value not in (None, False):
                raise typer.BadParameter(f"--{name} is of --to {target}, found --to {to}")
    if hub.yes and hub.push is None:
        raise typer.BadParameter("--yes is given without --push OWNER/NAME, expected where to upload to")
    if to == "onnx" and onnx.component is None:
        raise typer.BadParameter("--component is not given, expected the one that is written with --to onnx")
    if to == "onnx" and dtype is not None:
        raise typer.BadParameter("--dtype is not allowed with --to onnx, which writes fp32, or with --int8 8 bits")
