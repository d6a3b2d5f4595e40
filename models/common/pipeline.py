"""What the pipelines of the families have in common: noise, callbacks, components that may be missing, folders."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from stagecoach.data.encoding.encoders import load_model, load_tokenizer

Generators = torch.Generator | list[torch.Generator] | None
Callback = Callable[..., Mapping[str, Any] | None]
"""diffusers' ``callback_on_step_end``: (pipeline, step, timestep, {name: tensor}) -> tensors that go on."""
OUTPUTS = ("pil", "np", "pt", "latent")
ANY = 1 << 31
"""Size of a vocabulary that no tokenizer exceeds."""


class StagePipeline(DiffusionPipeline):
    """A pipeline around a ``NetworkComponent``, its ``transformer``."""

    transformer: Any
    _execution_device: Any
    _callback_tensor_inputs: Any

    def make_noise(self, shape: tuple[int, ...], generator: Generators, given: Tensor | None) -> Tensor:
        """Standard normal fp32 of ``shape`` on the pipeline's device, of the generators or ``given``. Raises
        ``ValueError``."""
        device = self._execution_device
        if given is not None:
            if tuple(given.shape) != shape:
                raise ValueError(f"the noise has shape {list(given.shape)}, expected {list(shape)}")
            return given.to(device, torch.float32)
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators given for {shape[0]} samples, expected as many")
        return randn_tensor(shape, generator, device, torch.float32)

    def need(self, name: str, use: Callable[[Any], Any] = lambda component: component) -> Any:
        """What ``use`` makes of the component. Raises ``ValueError`` where the pipeline has none."""
        if getattr(self, name) is None:
            raise ValueError(f"the pipeline has no {name}, which this call needs; give {name}= where it is made")
        return use(getattr(self, name))

    def check_callback(self, names: Sequence[str]) -> None:
        """Raises ``ValueError`` for tensors that no callback is given."""
        unknown = set(names) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)}, expected some of "
                f"{self._callback_tensor_inputs}"
            )

    def check_output(self, output_type: str) -> None:
        """Raises ``ValueError`` before the steps are taken for a form that there is not, or no VAE to decode with."""
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUTS)}")
        if output_type != "latent":
            self.need("vae")

    def offload_encoders(self) -> None:
        """Under model offloading: off the card with all but the ``transformer``. By itself each model sends away the
        one before it in the sequence, so that those which a call did not use, or used out of turn, would stay there
        through all steps."""
        for hook in getattr(self, "_all_hooks", []):
            if hook.model is not self.transformer:
                hook.offload()

    def on_step(
        self,
        bar: Any,
        callback: Callback | None,
        asked: Sequence[str],
        conditions: dict[str, Any] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Callable[[int, Tensor, Tensor], Tensor | None]:
        """For a loop over steps: a function of step, time and latents that moves the ``bar``, calls ``callback`` with
        the tensors ``asked``, puts what it returns into ``conditions``, and gives the latents that it returns, if any.
        ``names``: of a tensor -> of the condition that it is; the latents are none."""
        own, known = {} if conditions is None else conditions, names or {}

        def call(step: int, t: Tensor, latents: Tensor) -> Tensor | None:
            bar.update()
            if callback is None:
                return None
            tensors = {"latents": latents, **{name: own[ours] for name, ours in known.items()}}
            changed = callback(self, step, t, {name: tensors[name] for name in asked}) or {}
            own.update({ours: changed[name] for name, ours in known.items() if name in changed})
            return changed.get("latents")

        return call


def repeated(value: Tensor, samples: int) -> Tensor:
    """One row per prompt (or one for all) -> one per sample, those of a prompt side by side. Raises ``ValueError``."""
    if not len(value) or samples % len(value):
        raise ValueError(
            f"{len(value)} rows of conditions given for {samples} samples, expected a number that divides them"
        )
    return value.repeat_interleave(samples // len(value), 0)


def is_path(given: Any) -> bool:
    return isinstance(given, str | Path)


def open_model(kind: type, given: Any, dtype: torch.dtype) -> Any:
    """The frozen model of a local folder, on the CPU in ``dtype``; what is no path is passed on. Raises
    ``EncoderError`` for a folder that does not hold it."""
    return load_model(kind, Path(given), torch.device("cpu"), dtype) if is_path(given) else given


def open_tokenizer(given: Any, text_encoder: Any) -> Any:
    """The tokenizer of a local folder, for ``text_encoder`` (None: any); what is no path is passed on. Raises
    ``EncoderError``."""
    vocabulary = ANY if text_encoder is None else text_encoder.config.vocab_size
    return load_tokenizer(Path(given), vocabulary)[0] if is_path(given) else given
