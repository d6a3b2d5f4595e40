"""``FantasyWorldPipeline``: from a prompt, a picture and a camera path to a video with its geometry, called as
diffusers' Wan pipelines are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan
from diffusers.utils.torch_utils import get_module_execution_device
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionModel, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from stagecoach.data.encoding.image_encoders import ImageEncoder
from stagecoach.data.encoding.latent_encoders import VideoEncoder, wan_statistics
from stagecoach.data.encoding.text_encoders import TextEncoder
from stagecoach.data.fantasy_world.cameras import decode_pose
from stagecoach.models.common.pipeline import Generators, StagePipeline, repeated
from stagecoach.models.common.quantize import Kind
from stagecoach.models.fantasy_world.components import open_components
from stagecoach.models.fantasy_world.config import VAE_SPACE, VAE_TIME
from stagecoach.models.fantasy_world.inputs import (
    FantasyWorldOutput,
    check_size,
    prepare_cameras,
    prepare_pictures,
    prepare_videos,
)
from stagecoach.models.fantasy_world.sampler import (
    INFERENCE_SIGMA,
    INFERENCE_STEPS,
    Guidance,
    Sample,
    read_geometry,
    sample,
)
from stagecoach.models.fantasy_world.step import make_process
from stagecoach.models.fantasy_world.streams import FantasyWorld
from stagecoach.models.fantasy_world.transformer import FantasyWorldTransformer
from stagecoach.models.weights import Weights, load_network, open_weights

Text = str | Sequence[str] | None
DRAWING_STAGE = 2
"""Whose network has all blocks of the video."""
TILE, TILE_STRIDE = (30, 52), (15, 26)
"""Of the published decoding, in latent pixels (height, width)."""


class FantasyWorldPipeline(StagePipeline):
    """A FantasyWorld network with the encoders that it is fed by. Text-to-video sizes take no picture and need no image
    encoder; without a text encoder give ``prompt_embeds``, without a VAE ask for ``output_type="latent"``."""

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012
    _optional_components = ["text_encoder", "tokenizer", "vae", "image_encoder", "image_processor"]  # noqa: RUF012

    def __init__(
        self,
        transformer: FantasyWorldTransformer,
        vae: AutoencoderKLWan | None = None,
        text_encoder: UMT5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_encoder: CLIPVisionModel | None = None,
        image_processor: CLIPImageProcessorPil | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_processor=image_processor,
        )
        self.video_processor = VideoProcessor(vae_scale_factor=VAE_SPACE)

    @classmethod
    def from_network(
        cls,
        network: FantasyWorld,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        image_encoder: Any = None,
    ) -> FantasyWorldPipeline:
        """A pipeline around a ``network`` whose weights are in place. The others are components, or local folders in
        the Hugging Face layout, as ``open_components`` reads them."""
        components = open_components(network.dtype, vae, text_encoder, tokenizer, image_encoder)
        return cls(FantasyWorldTransformer.of(network), **components)

    @classmethod
    def from_adapter(
        cls,
        adapter: str | Path | None,
        base: str | Path | None = None,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        image_encoder: Any = None,
        dtype: torch.dtype = torch.float32,
        which: Literal["raw", "ema"] = "raw",
        size: str | None = None,
        predecessor: str | Path | None = None,
        quantize: Kind | None = None,
    ) -> FantasyWorldPipeline:
        """A pipeline of trained weights on the CPU: an adapter's folder, a file that ``export.py`` wrote, a checkpoint
        (``which`` of its weights; ``predecessor``: what its stage started from, where that has moved), or None for the
        base of ``size``. ``base``: folder of Wan's transformer, None for the one that it was trained on, its linear
        layers in 8 bits with ``quantize`` (``int8``, ``fp8``); the others as ``from_network`` takes them.

        Weights of stage 1 stand in the network of stage 2, whose exchange is silent: the base makes the video, and what
        was trained reads its geometry. Raises ``ValueError`` and ``DamagedError`` as ``open_weights``."""
        weights = open_weights(adapter, which, family="fantasy_world", size=size, predecessor=predecessor)
        network = load_drawing(weights, base, dtype, quantize)
        return cls.from_network(network, vae, text_encoder, tokenizer, image_encoder)

    def enable_vae_tiling(self) -> None:
        """Decode in overlapping tiles of the published size, for cards of 24 GB. Latent frames are decoded one after
        the other and samples one by one in any case."""
        (height, width), (down, right) = ((VAE_SPACE * size for size in sizes) for sizes in (TILE, TILE_STRIDE))
        self.vae.enable_tiling(height, width, down, right)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Text = None,
        negative_prompt: Text = None,
        image: Any = None,
        cameras: Any = None,
        intrinsics: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = INFERENCE_STEPS,
        guidance_scale: float = 5.0,
        camera_guidance_scale: float | None = None,
        cfg_batch: Literal["together", "sequential"] = "sequential",
        scheduler: str | None = None,
        geometry: bool = True,
        num_videos_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        output_type: Literal["np", "pt", "pil", "latent"] = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int | None = None,
    ) -> FantasyWorldOutput | tuple:
        """Videos, and their geometry as the network sees it in the last step.

        Args:
            prompt: one or several; B is their number times ``num_videos_per_prompt``.
            negative_prompt: what to lead away from; None is the null text of training, all zeros.
            image: the first frame, for image-to-video sizes; see ``prepare_pictures``.
            cameras: w2c ``[F, 3, 4]`` or ``[B, F, 3, 4]`` in units of the scene, taken relative to frame 0; None
                withholds the camera. With them ``intrinsics`` ``[F, 4]``, fx fy cx cy in pixels of the output.
            height, width, num_frames: None for those of the network's clip; frames are 4(f - 1) + 1.
            guidance_scale: towards the prompt; up to 1 without a negative pass.
            camera_guidance_scale: towards the camera, in a third pass; None for none.
            cfg_batch: passes in one batch, or one after the other.
            scheduler: diffusers' name; the noise levels are ours whichever (``FlowMatching.sigmas``).
            geometry: whether to read depth, points and cameras of all frames.
            generator: one on the CPU for each sample makes a sample independent of its batch and device
                (``models.common.keyed.request_generators``).
            latents: the standard normal noise ``[B, 16, f, h, w]`` instead.
            callback_on_step_end: called as (pipeline, step, timestep, {name: tensor}); tensors it returns go on.

        Returns a ``FantasyWorldOutput``, or its fields that are not None as a tuple. Raises ``ValueError``.
        """
        network, device = self.transformer.network, self._execution_device
        clip = network.config.clip
        frames, height, width = num_frames or clip.frames, height or clip.height, width or clip.width
        shape = (network.config.backbone.out_channels, *check_size(frames, height, width))
        if network.stage == 1:
            raise ValueError(
                "this network is that of stage 1, which has no video blocks behind the split, expected that of stage 2 "
                "(from_adapter builds it for an adapter of stage 1 too); read_geometry takes a given video"
            )
        self.check_callback(callback_on_step_end_tensor_inputs)
        self.check_output(output_type)
        guidance = Guidance(guidance_scale, camera_guidance_scale, cfg_batch)
        text = self.encode_prompt(prompt, prompt_embeds, max_sequence_length, "prompt")
        samples = len(text) * num_videos_per_prompt
        negative = None
        if guidance_scale > 1 and not (negative_prompt is None and negative_prompt_embeds is None):
            if isinstance(negative_prompt, str):
                negative_prompt = [negative_prompt] * len(text)
            negative = self.encode_prompt(
                negative_prompt, negative_prompt_embeds, max_sequence_length, "negative_prompt"
            )
            if len(negative) != len(text):
                raise ValueError(f"{len(negative)} negative prompts given for {len(text)} prompts, expected as many")
            longest = max(text.shape[1], negative.shape[1])
            text, negative = _lengthened(text, longest), _lengthened(negative, longest)
        conditions = {
            "text": text,
            "negative_text": negative,
            **self._camera(cameras, intrinsics, frames, height, width, samples),
            **self._picture(image, image_embeds, frames, height, width, len(text)),
        }
        conditions = {
            name: None if value is None else repeated(value, samples).to(device) for name, value in conditions.items()
        }
        noise = self.make_noise((samples, *shape), generator, latents)
        self.offload_encoders()
        with self.progress_bar(total=num_inference_steps) as bar:
            names = {"prompt_embeds": "text", "negative_prompt_embeds": "negative_text"}
            on_step = self.on_step(bar, callback_on_step_end, callback_on_step_end_tensor_inputs, conditions, names)
            found = sample(
                self.transformer,
                conditions,
                noise,
                make_process(network.config.losses),
                num_inference_steps,
                guidance,
                scheduler,
                torch.arange(frames, device=device).expand(samples, -1) if geometry else None,
                on_step,
            )
        return self._finished(found, self.decode(found.latents, output_type), height, width, return_dict)

    @torch.no_grad()
    def read_geometry(
        self,
        video: Any,
        prompt: Text = None,
        cameras: Any = None,
        intrinsics: Any = None,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        sigma: float = INFERENCE_SIGMA,
        output_type: Literal["np", "pt", "pil", "latent"] = "np",
        max_sequence_length: int | None = None,
        return_dict: bool = True,
    ) -> FantasyWorldOutput | tuple:
        """Depth, points and cameras of given videos, with an adapter of either stage: the ``video``
        (``prepare_videos``; or its clean ``latents``) is made noisy at ``sigma``, where the published loop reads the
        geometry, and goes through the network once. ``frames`` of the result are the video itself. No prompt is the
        null text; the other arguments are those of a call."""
        network, device = self.transformer.network, self._execution_device
        height, width = height or network.config.clip.height, width or network.config.clip.width
        clips = None if video is None else prepare_videos(video, height, width)
        if latents is None:
            if clips is None:
                raise ValueError("neither video nor latents given, expected one of them")
            check_size(len(clips[0]), height, width)
            latents = torch.stack(self.need("vae", VideoEncoder.of).encode(clips))
        else:
            height, width = (VAE_SPACE * size for size in latents.shape[-2:])
        samples, frames = len(latents), VAE_TIME * (latents.shape[2] - 1) + 1
        if prompt is None and prompt_embeds is None:
            prompt_embeds = torch.zeros(1, 1, network.config.backbone.text_dim)
        picture = None if clips is None else [clip[0] for clip in clips]
        conditions = {
            "text": self.encode_prompt(prompt, prompt_embeds, max_sequence_length, "prompt"),
            **self._camera(cameras, intrinsics, frames, height, width, samples),
            **self._picture(
                picture if network.config.image_to_video else None, image_embeds, frames, height, width, samples
            ),
        }
        conditions = {
            name: None if value is None else repeated(value, samples).to(device) for name, value in conditions.items()
        }
        latents = latents.to(device)
        prediction = read_geometry(
            self.transformer,
            conditions,
            latents,
            self.make_noise(tuple(latents.shape), generator, noise),
            make_process(network.config.losses),
            torch.arange(frames, device=device).expand(samples, -1),
            sigma,
        )
        found = Sample(latents, prediction, sigma)
        shown: Any = latents
        if output_type != "latent":
            if clips is None:
                shown = self.decode(latents, output_type)
            else:
                pixels = torch.stack([torch.from_numpy(clip) for clip in clips]).movedim(-1, 1)
                shown = self.video_processor.postprocess_video(pixels.float() / 127.5 - 1, output_type)
        return self._finished(found, shown, height, width, return_dict)

    def encode_prompt(self, prompt: Text, embeds: Tensor | None, length: int | None, name: str) -> Tensor:
        """umT5's states ``[P, L, text_dim]`` of the prompts, zeros behind each; or the ``embeds``, if they are given.
        Raises ``ValueError`` about the argument ``name``."""
        if (prompt is None) == (embeds is None):
            raise ValueError(f"give either {name} or {name}_embeds, not {'both' if prompt is not None else 'neither'}")
        if embeds is not None:
            return embeds
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(f"{name} is text, and the pipeline has no text encoder and tokenizer; give {name}_embeds")
        length = length or self.transformer.network.config.backbone.text_length
        encoder = TextEncoder.of(self.text_encoder, self.tokenizer, length)
        return pad_sequence(encoder.encode([prompt] if isinstance(prompt, str) else list(prompt)), batch_first=True)

    def decode(self, latents: Tensor, output_type: str) -> Any:
        """Pixels of clean latents ``[B, 16, f, h, w]``, sample by sample, as ``FantasyWorldOutput.frames``."""
        if output_type == "latent":
            return latents
        self.need("vae")
        device, dtype = get_module_execution_device(self.vae), self.vae.dtype
        mean, std = wan_statistics(self.vae)
        videos = []
        for latent in latents:
            z = (latent.cpu() * std + mean).to(device, dtype)
            videos.append(self.vae.decode(z, return_dict=False)[0].float().cpu())
        return self.video_processor.postprocess_video(torch.cat(videos), output_type)

    def _camera(
        self, cameras: Any, intrinsics: Any, frames: int, height: int, width: int, samples: int
    ) -> dict[str, Tensor]:
        names = ("extrinsics", "intrinsics", "camera_given")
        return dict(zip(names, prepare_cameras(cameras, intrinsics, frames, height, width, samples), strict=True))

    def _picture(
        self, image: Any, embeds: Tensor | None, frames: int, height: int, width: int, prompts: int
    ) -> dict[str, Tensor]:
        """The latent of the first frame and CLIP's states of it, one for each prompt."""
        config = self.transformer.network.config
        if not config.image_to_video:
            if image is not None or embeds is not None:
                raise ValueError("a picture is given, but this network is text-to-video and takes none; leave it out")
            return {}
        if image is None:
            raise ValueError("this network is image-to-video, expected image, the first frame")
        pictures = prepare_pictures(image, height, width, prompts)
        clips = [torch.zeros(frames, height, width, 3, dtype=torch.uint8).numpy() for _ in pictures]
        for clip, picture in zip(clips, pictures, strict=True):
            clip[0] = picture
        if embeds is None:
            self.need("image_encoder")
            embeds = ImageEncoder.of(self.image_encoder, self.image_processor).encode(pictures)
        return {
            "image_latent": torch.stack(self.need("vae", VideoEncoder.of).image_latents(clips)),
            "image_states": embeds,
        }

    def _finished(self, found: Sample, frames: Any, height: int, width: int, return_dict: bool) -> Any:
        self.maybe_free_model_hooks()
        output = FantasyWorldOutput(frames=frames)
        if found.geometry is not None:
            read = found.geometry
            extrinsics, intrinsics = decode_pose(read["poses"][-1].float().cpu(), height, width)
            names = ("depth", "depth_confidence", "points", "points_confidence")
            dense = {name: read[name].float().cpu() for name in names}
            output = FantasyWorldOutput(
                frames=frames, **dense, extrinsics=extrinsics, intrinsics=intrinsics, sigma_read=found.sigma_read
            )
        return output if return_dict else output.to_tuple()


def load_drawing(
    weights: Weights, base: str | Path | None, dtype: torch.dtype, quantize: Kind | None = None
) -> FantasyWorld:
    """The network of stage 2 with ``weights`` of either stage; see ``FantasyWorldPipeline.from_adapter``."""
    drawing = replace(weights, card=replace(weights.card, stage=DRAWING_STAGE))
    return load_network(drawing, base, dtype=dtype, quantize=quantize)  # type: ignore[return-value]


def _lengthened(text: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[1]))
