"""Parts of networks as ONNX files. Each is run by onnxruntime and compared with PyTorch before it gets its name."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stagecoach.data.files import TEMPORARY, import_extra, sync_directory

if TYPE_CHECKING:
    from stagecoach.models.weights import Weights

OPSET = 17
BOUND, INT8_BOUND = 1e-3, 0.05
"""Largest difference from PyTorch, as a fraction of an output's largest value."""
WHOLE = 2**31 - 2**24
"""Bytes of weights in one file; protobuf ends at 2 GiB. More of them stand in ``<file>.data`` next to it."""
PRODUCTS = ["MatMul", "Gemm"]
"""What int8 is for: convolutions in integers are slower on CPUs, and TensorRT has none of ONNX's."""


@dataclass(frozen=True)
class OnnxRequest:
    """What a component is made from: ``base`` as ``load_network`` takes it, ``vae`` the folder of a VAE, ``frames`` the
    length at which a component of fixed length is written (None: the config's)."""

    weights: Weights
    base: str | Path | Mapping[str, str | Path] | None = None
    vae: Path | None = None
    frames: int | None = None


@dataclass(frozen=True)
class OnnxPart:
    """A module and how it is called: ``inputs(0)`` is traced, and ``inputs(1)``, of other lengths along the ``free``
    axes (``{name: {axis: label}}``), compared as well; tensors in the order of ``forward``'s arguments. ``outputs``
    names what it returns."""

    module: nn.Module
    inputs: Callable[[int], dict[str, Tensor]]
    outputs: tuple[str, ...]
    free: Mapping[str, Mapping[int, str]]


Component = Callable[[OnnxRequest], OnnxPart]


@dataclass(frozen=True)
class Difference:
    """Of an output from PyTorch's: the largest, and the largest as a fraction of the output's largest value."""

    absolute: float
    relative: float


def write_onnx(part: OnnxPart, path: Path, about: Mapping[str, str], int8: bool = False) -> dict[str, Difference]:
    """Write ``part`` to ``path``, with ``about`` as its metadata, and return how far each output is from PyTorch's. The
    same content is the same bytes. With ``int8`` the matrices of its products are in 8 bits, one scale for each output
    channel, and what they are multiplied with is quantised as it comes (dynamically).

    Raises:
        MissingPackageError: onnx or onnxruntime is not installed.
        ValueError: a difference is above ``BOUND`` (``INT8_BOUND``), or there is no product to quantise. No file is
            left.
    """
    onnx = import_extra("onnx", "ONNX files", "export")
    import_extra("onnxruntime", "the comparison of an ONNX file with PyTorch", "export")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.module.eval()
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as name:
        folder = Path(name)
        traced, written = folder / "traced" / path.name, folder / "written" / path.name
        for file in (traced, written):
            file.parent.mkdir()
        _trace(part, traced)
        found = _check(part, traced, BOUND, path)
        if int8:
            traced = _quantise(traced, folder / "int8" / path.name, path)
        model = onnx.load(traced)
        onnx.helper.set_model_props(model, dict(sorted(about.items())))
        _save(model, written, _is_large(traced))
        if int8:
            found = _check(part, written, INT8_BOUND, path)
        for file in sorted(written.parent.iterdir(), reverse=True):  # what a file refers to comes before it
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(file, path.parent / file.name)
    sync_directory(path.parent)
    return found


def _trace(part: OnnxPart, path: Path) -> None:
    given = part.inputs(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants: what differs for it shows in the comparison
        # The exporter of traces: that of graphs needs onnxscript, and gains nothing where there are no branches.
        torch.onnx.export(
            part.module,
            tuple(given.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(given),
            output_names=list(part.outputs),
            dynamic_axes={name: dict(axes) for name, axes in part.free.items()},
        )


def _save(model: Any, path: Path, large: bool) -> None:
    onnx = import_extra("onnx", "ONNX files", "export")
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def _is_large(path: Path) -> bool:
    """Whether the file, with those that it refers to, holds more than one may. Each has a folder to itself."""
    return sum(file.stat().st_size for file in path.parent.iterdir()) > WHOLE


def _quantise(path: Path, output: Path, final: Path) -> Path:
    quantization = import_extra("onnxruntime.quantization", "ONNX files in 8 bits", "export")
    onnx = import_extra("onnx", "ONNX files", "export")
    output.parent.mkdir()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of a pass before it, which the exporter has made
    try:
        quantization.quantize_dynamic(
            str(path),
            str(output),
            per_channel=True,
            # With QInt8, sums overflow on CPUs without VNNI: 8 % off instead of 1.4.
            weight_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=PRODUCTS,
            use_external_data_format=_is_large(path),
        )
    finally:
        logging.disable(before)
    if not any("Integer" in node.op_type for node in onnx.load(output, load_external_data=False).graph.node):
        raise ValueError(
            f"{final}: the component has no product with a matrix of weights, expected one for int8; leave it out"
        )
    return output


@torch.no_grad()
def _check(part: OnnxPart, path: Path, bound: float, final: Path) -> dict[str, Difference]:
    runtime = import_extra("onnxruntime", "the comparison of an ONNX file with PyTorch", "export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # no notes on how it was optimised
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = dict.fromkeys(part.outputs, Difference(0.0, 0.0))
    for which in (0, 1):
        given = part.inputs(which)
        expected = part.module(*given.values())
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(list(part.outputs), {name: value.numpy() for name, value in given.items()})
        for name, ours, theirs in zip(part.outputs, expected, found, strict=True):
            difference = _difference(ours, torch.from_numpy(theirs))
            if not difference.relative <= bound:
                raise ValueError(
                    f"{final}: {name} differs from PyTorch's by {difference.absolute:.3g}, {difference.relative:.2%} "
                    f"of its largest value, expected at most {bound:.1%}; no file was written"
                )
            worst[name] = max(worst[name], difference, key=lambda one: one.relative)
    return worst


def _difference(expected: Tensor, found: Tensor) -> Difference:
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return Difference(float("inf"), float("inf"))
    largest = float((found - expected).abs().max())
    scale = float(expected.abs().max())
    return Difference(largest, largest / scale if scale else (float("inf") if largest else 0.0))
