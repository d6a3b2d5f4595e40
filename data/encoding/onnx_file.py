"""A model in a local .onnx file, run by onnxruntime on the current device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecoach.data.encoding.encoders import EncoderEntry, EncoderError, short_error
from stagecoach.data.files import import_extra, sha256_file


class OnnxFile:
    """``inputs``, ``outputs``: shapes by name, free sizes as text or None. Raises ``EncoderError`` for a file that
    is no ONNX model."""

    def __init__(self, path: Path, purpose: str, extra: str) -> None:
        onnxruntime = import_extra("onnxruntime", purpose, extra)
        check_onnx(path, purpose)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()  # else one per core in each of several workers
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        try:
            providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no base but this
            raise EncoderError(f"{path}: not loadable as an ONNX model ({short_error(error)})") from error
        self.path = path
        self.inputs: dict[str, Sequence[Any]] = {given.name: given.shape for given in self._session.get_inputs()}
        self.outputs: dict[str, Sequence[Any]] = {made.name: made.shape for made in self._session.get_outputs()}

    def __call__(self, values: np.ndarray) -> list[np.ndarray]:
        """All outputs for ``values`` as the first input."""
        return self._session.run(None, {next(iter(self.inputs)): values})


def check_onnx(path: Path, purpose: str) -> None:
    """Raises ``EncoderError`` where there is no such file."""
    if not path.is_file():
        raise EncoderError(f"{path}: no such file, expected {purpose} as .onnx")


def onnx_entry(path: Path, name: str, purpose: str) -> EncoderEntry:
    """What the manifest says of the model. Raises ``EncoderError`` for a missing file."""
    check_onnx(path, purpose)
    return EncoderEntry(name=name, path_name=path.name, sha256=sha256_file(path), dtype="float32")
