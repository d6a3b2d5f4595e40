"""The components of a diffusers pipeline's folder that prepare data: VAE, text encoders and tokenizers, frozen."""

import importlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stagecoach.data.encoding.encoders import (
    EncoderEntry,
    EncoderError,
    default_device,
    encoder_entries,
    load_config,
    load_model,
    load_tokenizer,
    read_config,
)

INDEX = "model_index.json"


class PipelineFolder:
    """A folder in diffusers' layout, by its ``model_index.json``. Raises ``EncoderError``.

    ``models`` are the classes of ``vae``, ``text_encoder``, ``text_encoder_2``, ... by role; ``tokenizers`` gives the
    text encoder of each tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            index = read_config(path, INDEX)
            self.kind: type = getattr(importlib.import_module("diffusers"), index["_class_name"])
            found = {role: entry for role, entry in index.items() if isinstance(entry, list) and entry[0]}
            self.models: dict[str, type] = {
                role: getattr(importlib.import_module(library), name)
                for role, (library, name) in found.items()
                if role == "vae" or role.startswith("text_encoder")
            }
        except (ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            raise EncoderError(
                f"{path / INDEX}: not readable ({type(error).__name__}: {error}), expected a pipeline of diffusers"
            ) from error
        self.tokenizers = {role: role.replace("tokenizer", "text_encoder") for role in found if "tokenizer" in role}

    @cached_property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """The configuration of each model, by role."""
        return {role: load_config(kind, self.path / role) for role, kind in self.models.items()}

    @cached_property
    def entries(self) -> dict[str, EncoderEntry]:
        """What the manifest says of each model and tokenizer, by role."""
        return encoder_entries(
            {role: (kind, self.path / role) for role, kind in self.models.items()},
            {role: (self.path / role, model) for role, model in self.tokenizers.items()},
        )

    def load_text_pipeline(self, device: torch.device | None = None) -> Any:
        """The pipeline with its text encoders and tokenizers alone, for its ``encode_prompt``."""
        device = device or default_device()
        components: dict[str, Any] = {
            role: load_model(kind, self.path / role, device) for role, kind in self.models.items() if role != "vae"
        }
        for role, model in self.tokenizers.items():
            components[role], _ = load_tokenizer(self.path / role, self.configs[model]["vocab_size"])
        return self.kind(**{"vae": None, "transformer": None, "scheduler": None, **components})
