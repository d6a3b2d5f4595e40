"""``MoviePostPipeline``: from a prompt, boxes and references to a picture, called as diffusers' FLUX pipeline is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection, Dinov2Model, T5EncoderModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from stagecoach.data.encoding.image_encoders import ClipEncoder, DinoEncoder
from stagecoach.data.encoding.text_encoders import CLIP_LENGTH, PooledTextEncoder, T5TextEncoder
from stagecoach.data.movie_post_production.schema import NAME as FAMILY
from stagecoach.data.pictures import check_sides
from stagecoach.models.common.pipeline import Callback, Generators, StagePipeline, repeated
from stagecoach.models.common.quantize import Kind
from stagecoach.models.movie_post_production.config import PATCH, VAE_STRIDE
from stagecoach.models.movie_post_production.inputs import (
    MoviePostOutput,
    encode_objects,
    make_references,
    open_components,
    parse_objects,
)
from stagecoach.models.movie_post_production.network import MoviePostNetwork, unpack
from stagecoach.models.movie_post_production.sampler import STEPS, Guidance, sample
from stagecoach.models.movie_post_production.transformer import MoviePostTransformer
from stagecoach.models.weights import load_network, open_weights
from stagecoach.models.weights.opening import Which

Text = str | Sequence[str] | None
CONDITIONS = {
    "prompt_embeds": "t5",
    "pooled_prompt_embeds": "pooled",
    "negative_prompt_embeds": "negative_t5",
    "negative_pooled_prompt_embeds": "negative_pooled",
}
"""diffusers' names of what the sampler takes."""


class MoviePostPipeline(StagePipeline):
    """A MoviePostProduction network with the encoders that it is fed by. Without text encoders give
    ``prompt_embeds`` and ``pooled_prompt_embeds``, without ``image_encoder`` and ``dino``, which see references,
    ``object_embeds``, without a VAE ask for ``output_type="latent"``."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->dino->transformer->vae"
    _callback_tensor_inputs = ["latents", *CONDITIONS]  # noqa: RUF012
    _optional_components = [  # noqa: RUF012
        "vae",
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "image_encoder",
        "dino",
    ]

    def __init__(
        self,
        transformer: MoviePostTransformer,
        vae: AutoencoderKL | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder_2: T5EncoderModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        dino: Dinov2Model | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            image_encoder=image_encoder,
            dino=dino,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=VAE_STRIDE * PATCH)

    @classmethod
    def from_network(cls, network: MoviePostNetwork, flux: Any = None, **components: Any) -> MoviePostPipeline:
        """A pipeline around a ``network`` whose weights are in place. ``components`` by name, loaded or local folders
        in the Hugging Face layout; those of FLUX that are not given are looked for in the folder ``flux``."""
        return cls(MoviePostTransformer.of(network), **open_components(network.dtype, flux, **components))

    @classmethod
    def from_adapter(
        cls,
        adapter: str | Path | None,
        base: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        which: Which = "raw",
        size: str | None = None,
        predecessor: str | Path | None = None,
        quantize: Kind | None = None,
        **components: Any,
    ) -> MoviePostPipeline:
        """A pipeline of trained weights: an adapter's folder, a file that ``export.py`` wrote, a checkpoint (``which``:
        itself or its average; ``predecessor``: what its stage started from, where that has moved), or None for the base
        of ``size``.

        ``base``: folder of the FLUX transformer, instead of the one that the adapter was trained on, whose hash it must
        have; in ``dtype``, its linear layers in 8 bits with ``quantize`` (``int8``, ``fp8``). ``components`` as of
        ``from_network``. Raises ``ValueError`` as ``open_weights`` and ``load_network``."""
        purpose = f" for a {cls.__name__}"
        weights = open_weights(adapter, which, family=FAMILY, size=size, predecessor=predecessor, purpose=purpose)
        return cls.from_network(load_network(weights, base, dtype=dtype, quantize=quantize), **components)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Text = None,
        prompt_2: Text = None,
        negative_prompt: Text = None,
        negative_prompt_2: Text = None,
        true_cfg_scale: float = 1.0,
        objects: Any = None,
        object_embeds: Mapping[str, Tensor] | None = None,
        layout_part: float | None = None,
        reference_guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = STEPS,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 3.5,
        scheduler: str | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int | None = None,
    ) -> MoviePostOutput | tuple:
        """Pictures of prompts, with objects in boxes.

        Args:
            prompt: one or several; B is their number times ``num_images_per_prompt``. ``prompt_2`` is for T5, if not
                the same.
            true_cfg_scale: above 1, with a ``negative_prompt`` (or its embeds), a second pass that leads away from it.
            objects: of all prompts, or a list for each: ``RequestedObject`` or the guide's entries ``{"bbox": [x1, y1,
                x2, y2] in 0..1, "category_name", "caption", "depth_label", "reference"}``, the last a picture or
                ``path[#x1,y1,x2,y2]``, or none: then the words alone say what it is.
            object_embeds: instead of them ``boxes``, ``depth``, ``clip``, ``dino``, ``object_text`` of each prompt, as
                a batch of shards has them.
            layout_part: of the steps, from the first, in which objects are shown; None for the network's
                ``sampling.layout_fraction``. InstanceAssemble publishes 0.3.
            reference_guidance_scale: towards the objects, in a pass without them; None for none.
            height, width: None for the network's.
            sigmas: of the steps, before they are moved by the number of tokens.
            guidance_scale: embedded guidance, an input of FLUX.1-dev; it costs no pass.
            scheduler: diffusers' name; the noise levels are FLUX's whichever (``FlowMatching.sigmas``).
            generator: one on the CPU for each sample makes a sample independent of its batch and device
                (``models.common.keyed.request_generators``).
            latents: the standard normal noise instead, ``[B, 16, h, w]`` or packed as FLUX's, ``[B, h w / 4, 64]``.
            callback_on_step_end: called as (pipeline, step, timestep, {name: tensor}); tensors it returns go on.
                ``latents`` are ``[B, 16, h, w]``.

        Returns a ``MoviePostOutput``, or its fields that are not None as a tuple. Raises ``ValueError``.
        """
        network, device = self.transformer.network, self._execution_device
        config = network.config
        height, width = height or config.image.height, width or config.image.width
        check_sides(height, width, VAE_STRIDE * PATCH, "VAE stride 8, patch 2")
        self.check_callback(callback_on_step_end_tensor_inputs)
        self.check_output(output_type)
        if layout_part is not None and not 0 <= layout_part <= 1:
            raise ValueError(f"layout_part is {layout_part}, expected the part of the steps, 0 to 1")
        if objects is not None and object_embeds is not None:
            raise ValueError("give either objects or object_embeds, not both")
        t5, pooled = self.encode_prompt(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds, max_sequence_length)
        samples = len(t5) * num_images_per_prompt
        conditions: dict[str, Any] = {"t5": t5, "pooled": pooled, "negative_t5": None, "negative_pooled": None}
        led = true_cfg_scale > 1 and not (negative_prompt is None and negative_prompt_embeds is None)
        if led:
            negative = [
                [text] * len(t5) if isinstance(text, str) else text for text in (negative_prompt, negative_prompt_2)
            ]
            given = negative_prompt_embeds, negative_pooled_prompt_embeds
            conditions["negative_t5"], conditions["negative_pooled"] = self.encode_prompt(
                *negative, *given, max_sequence_length, "negative_"
            )
            if len(conditions["negative_t5"]) != len(t5):
                raise ValueError(
                    f"{len(conditions['negative_t5'])} negative prompts given for {len(t5)} prompts, expected as many"
                )
        fields = object_embeds
        if objects is not None:
            fields = self.encode_objects(objects, len(t5))
        instances = make_references(fields, config, network.stage, len(t5))
        conditions = {
            name: None if value is None else repeated(value, samples).to(device) for name, value in conditions.items()
        }
        conditions["instances"] = {name: repeated(value, samples).to(device) for name, value in instances.items()}
        h, w = height // VAE_STRIDE, width // VAE_STRIDE
        if latents is not None and latents.ndim == 3:
            latents = unpack(latents, h // PATCH, w // PATCH)
        noise = self.make_noise((samples, config.backbone.latent_channels, h, w), generator, latents)
        steps = num_inference_steps if sigmas is None else len(sigmas)
        self.offload_encoders()
        with self.progress_bar(total=steps) as bar:
            on_step = self.on_step(
                bar, callback_on_step_end, callback_on_step_end_tensor_inputs, conditions, CONDITIONS
            )
            found = sample(
                self.transformer,
                conditions,
                noise,
                steps,
                Guidance(guidance_scale, true_cfg_scale if led else 1.0, reference_guidance_scale),
                config.sampling.layout_fraction if layout_part is None else layout_part,
                solver=scheduler,
                sigmas=sigmas,
                on_step=on_step,
            )
        output = MoviePostOutput(images=self.decode(found.latents, output_type))
        if fields is not None:
            output["boxes"], output["alpha"] = conditions["instances"]["boxes"].cpu(), found.alpha.cpu()
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def encode_prompt(
        self,
        prompt: Text,
        prompt_2: Text = None,
        embeds: Tensor | None = None,
        pooled: Tensor | None = None,
        length: int | None = None,
        name: str = "",
    ) -> tuple[Tensor, Tensor]:
        """T5's states ``[P, L, text_dim]``, padding included, and CLIP's pooled state ``[P, pooled_dim]`` of the
        prompts; or ``embeds`` and ``pooled``, if they are given. Raises ``ValueError`` about the arguments that
        ``name`` begins."""
        if embeds is not None and pooled is not None and prompt is None:
            return embeds, pooled
        if prompt is None or embeds is not None or pooled is not None:
            given = {"prompt": prompt, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
            found = [f"{name}{key}" for key, value in given.items() if value is not None]
            raise ValueError(
                f"give either {name}prompt, or {name}prompt_embeds and {name}pooled_prompt_embeds; found {found}"
            )
        texts, texts_2 = ([p] if isinstance(p, str) else list(p) for p in (prompt, prompt_2 or prompt))
        if len(texts_2) != len(texts):
            raise ValueError(f"{len(texts_2)} {name}prompt_2 given for {len(texts)} {name}prompt, expected as many")
        length = length or self.transformer.network.config.backbone.text_length
        encoder = T5TextEncoder.of(self.need("text_encoder_2"), self.need("tokenizer_2"), length)
        return torch.stack(encoder.encode(texts_2)), torch.stack(self._clip_text().encode(texts))

    def encode_objects(self, objects: Any, prompts: int) -> dict[str, Tensor]:
        """``object_embeds`` of the objects of so many prompts. Raises ``ValueError``."""
        config = self.transformer.network.config
        return encode_objects(
            parse_objects(objects, prompts),
            None if self.image_encoder is None else ClipEncoder.of(self.image_encoder),
            None if self.dino is None else DinoEncoder.of(self.dino),
            self._clip_text() if config.instance.text else None,
            config,
        )

    def decode(self, latents: Tensor, output_type: str) -> Any:
        """Pictures of clean latents ``[B, 16, h, w]``, one by one, as ``MoviePostOutput.images``."""
        if output_type == "latent":
            return latents
        vae = self.need("vae")
        device, pictures = get_module_execution_device(vae), []
        for latent in latents.split(1):
            z = latent / vae.config.scaling_factor + vae.config.shift_factor
            pictures.append(vae.decode(z.to(device, vae.dtype), return_dict=False)[0].float().cpu())
        return self.image_processor.postprocess(torch.cat(pictures), output_type)

    def _clip_text(self) -> PooledTextEncoder:
        return PooledTextEncoder.of(self.need("text_encoder"), self.need("tokenizer"), CLIP_LENGTH)
