"""Loading the frozen encoders of the builders from local folders in the Hugging Face layout, and what manifests say of
them.

Encoders take and give what diffusers' pipelines do, so that a network trained on their output can be used there. On a
GPU they compute in bf16, on a CPU in fp32; results are fp32 on the CPU. One thread may use an encoder at a time.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stagecoach.data.files import sha256_file, sha256_json

# The libraries draw a bar for each file, which would hide that of a build.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


class EncoderError(ValueError):
    """A folder does not hold the encoder that was asked for."""


class EncoderEntry(TypedDict):
    """What a manifest says of an encoder: its class, the name of its folder, the sha256 of its weights, and how its
    ``input`` was made, where that can be done in several ways."""

    name: str
    path_name: str
    sha256: str
    dtype: str
    input: NotRequired[str]


def default_device() -> torch.device:
    """The current GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """What encoders compute in on ``device``: fp32 on a CPU, else bf16."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def bits(tensor: Tensor) -> np.ndarray:
    """The tensor in bf16, as the uint16 that shards hold."""
    return tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()


def encoder_folder(path: Path) -> Path:
    """The folder itself. Raises ``EncoderError`` where there is none."""
    if not path.is_dir():
        raise EncoderError(f"{path}: no such folder, expected an encoder in the Hugging Face layout")
    return path


def read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """The JSON object ``name`` of a folder. Raises ``EncoderError``."""
    try:
        config = json.loads((encoder_folder(path) / name).read_text())
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{path / name}: not readable ({error}), expected an encoder in the Hugging Face layout"
        ) from error
    return config if isinstance(config, dict) else {}


def load_model(kind: type, path: Path, device: torch.device, dtype: torch.dtype | None = None):
    """A frozen model of class ``kind`` on ``device``, in ``dtype`` (None: that which encoders compute in there).

    Raises ``EncoderError`` for a folder that does not hold such a model, and for weights that lack a part of it, which
    the libraries would make up at random.
    """
    encoder_folder(path)
    try:
        model, found = kind.from_pretrained(
            path, local_files_only=True, output_loading_info=True, torch_dtype=dtype or compute_dtype(device)
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EncoderError(f"{path}: {kind.__name__} cannot be loaded from it ({short_error(error)})") from error
    if found["missing_keys"]:
        raise EncoderError(
            f"{path}: no weights found for {sorted(found['missing_keys'])[:3]}, expected all those of a "
            f"{kind.__name__}; give the folder of one"
        )
    return model.eval().requires_grad_(False).to(device)


def load_config(kind: type, path: Path) -> Mapping[str, Any]:
    """The configuration of a model of class ``kind``, from which its sizes are known before it is loaded (diffusers'
    files hold every value, transformers' are completed). Raises ``EncoderError``."""
    encoder_folder(path)
    try:
        if issubclass(kind, diffusers.ConfigMixin):
            return kind.load_config(path, local_files_only=True)
        return kind.config_class.from_pretrained(path, local_files_only=True).to_dict()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{path}: no configuration of a {kind.__name__} can be read from it ({short_error(error)})"
        ) from error


def load_tokenizer(path: Path, vocabulary: int) -> tuple[PreTrainedTokenizerBase, EncoderEntry]:
    """A tokenizer for a text encoder that knows ``vocabulary`` tokens, and its entry. Raises ``EncoderError``."""
    encoder_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{path}: no tokenizer can be loaded from it ({short_error(error)})") from error
    if len(tokenizer) > vocabulary:
        raise EncoderError(
            f"{path}: {len(tokenizer)} tokens found, expected at most the {vocabulary} of its text "
            f"encoder; give the tokenizer that belongs to it"
        )
    return tokenizer, EncoderEntry(
        name=type(tokenizer).__name__,
        path_name=path.resolve().name,
        sha256=hash_files(sorted(path.glob("*"))),
        dtype="int64",
    )


def load_processor(path: Path) -> Any:
    """What turns pictures (and texts) into the input of the model in the same folder. Raises ``EncoderError``."""
    encoder_folder(path)
    try:
        return transformers.AutoProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EncoderError(
            f"{path}: no processor can be loaded from it ({short_error(error)}), expected preprocessor_config.json "
            "next to the weights"
        ) from error


def encoder_entry(kind: type, path: Path, device: torch.device) -> EncoderEntry:
    """What the manifest says of the model in ``path``. Raises ``EncoderError`` where it holds no weights."""
    weights = sorted(encoder_folder(path).glob("*.safetensors"))
    if not weights:
        raise EncoderError(
            f"{path}: no .safetensors found, expected the weights of a {kind.__name__}; found "
            f"{sorted(p.name for p in path.iterdir())[:8]}"
        )
    return EncoderEntry(
        name=kind.__name__,
        path_name=path.resolve().name,
        sha256=hash_files(weights),
        dtype=str(compute_dtype(device)).removeprefix("torch."),
    )


def model_entry(kind: type, path: Path) -> EncoderEntry:
    """As ``encoder_entry``, for one of transformers' automatic classes: named as the folder's configuration says."""
    named = read_config(path).get("architectures") or [kind.__name__]
    return {**encoder_entry(kind, path, default_device()), "name": named[0]}


def encoder_entries(
    models: Mapping[str, tuple[type, Path]], tokenizers: Mapping[str, tuple[Path, str]] | None = None
) -> dict[str, EncoderEntry]:
    """What the manifest says of the models (class, folder) and the tokenizers (folder, role of the text encoder) by
    role, without loading the models. Raises ``EncoderError``."""
    device = default_device()
    entries = {role: encoder_entry(kind, path, device) for role, (kind, path) in models.items()}
    for role, (path, text_role) in (tokenizers or {}).items():
        entries[role] = load_tokenizer(path, load_config(*models[text_role])["vocab_size"])[1]
    return entries


def hash_files(files: Sequence[Path]) -> str:
    """Of the one file, or of the names and hashes of several."""
    hashes = {file.name: sha256_file(file) for file in files if file.is_file()}
    return next(iter(hashes.values())) if len(hashes) == 1 else sha256_json(hashes)


def short_error(error: Exception) -> str:
    """The first line of an exception's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
