"""``DanceWithMusicPipeline``: from a song and a photo to a video of the person dancing, called as diffusers' video
pipelines are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.dance_with_music.schema import FRAME_RATE, KEYPOINTS, LATENT_CHANNELS, LATENT_STRIDE
from stagecoach.data.dance_with_music.schema import NAME as FAMILY
from stagecoach.data.dance_with_music.track import Track
from stagecoach.data.encoding.image_encoders import ClipResize, PictureEmbedder
from stagecoach.data.pictures import check_sides
from stagecoach.models.common.pipeline import Callback, Generators, StagePipeline
from stagecoach.models.common.quantize import Kind
from stagecoach.models.dance_with_music.components import Base, base_paths, open_components, open_music_to_pose
from stagecoach.models.dance_with_music.config import pixel_noise
from stagecoach.models.dance_with_music.decoding import decode_frames
from stagecoach.models.dance_with_music.guidance.dance import encode_dance
from stagecoach.models.dance_with_music.inputs import (
    DanceOutput,
    cut_face,
    move_pose,
    photo_latents,
    prepare_face,
    prepare_photos,
    prepare_pose,
    read_maps,
    read_rows,
)
from stagecoach.models.dance_with_music.music_to_pose.dance import Dance, predict_dance
from stagecoach.models.dance_with_music.network import DanceNetwork
from stagecoach.models.dance_with_music.sampler import make_passes, make_process, make_windows, sample
from stagecoach.models.dance_with_music.stages import condition_scale
from stagecoach.models.dance_with_music.transformer import DanceTransformer, FaceModel
from stagecoach.models.family import Progress
from stagecoach.models.weights import load_network, open_weights
from stagecoach.models.weights.opening import Which


class DanceWithMusicPipeline(StagePipeline):
    """A DanceWithMusic network with what feeds it. Without VAE and image encoder give ``image_latents`` and
    ``image_embeds``, without ``face_encoder`` ``face_embeds``, or the face is not shown to the network.
    ``music_to_pose``: one of its own, where the ``transformer`` has none or another is wanted."""

    model_cpu_offload_seq = "image_encoder->music_to_pose->transformer->vae"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012
    _optional_components = ["vae", "image_encoder", "image_processor", "face_encoder", "music_to_pose"]  # noqa: RUF012

    def __init__(
        self,
        transformer: DanceTransformer,
        vae: AutoencoderKL | AutoencoderKLTemporalDecoder | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        image_processor: CLIPImageProcessorPil | None = None,
        face_encoder: FaceModel | None = None,
        music_to_pose: DanceTransformer | None = None,
        clip_resize: str = "crop",
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            image_encoder=image_encoder,
            image_processor=image_processor,
            face_encoder=face_encoder,
            music_to_pose=music_to_pose,
        )
        self.register_to_config(clip_resize=clip_resize)
        self.video_processor = VideoProcessor(vae_scale_factor=LATENT_STRIDE)

    @classmethod
    def from_network(
        cls,
        network: DanceNetwork,
        vae: Any = None,
        image_encoder: Any = None,
        arcface: Any = None,
        music_to_pose: DanceNetwork | None = None,
        clip_resize: ClipResize | None = None,
    ) -> DanceWithMusicPipeline:
        """A pipeline around a ``network`` whose weights are in place. The others are components, or local paths, as
        ``open_components`` reads them. ``clip_resize``: how CLIP saw the references when shards were built; None:
        ``squash`` for backbone ``svd``, else ``crop``."""
        squashed = network.config.backbone == "svd"
        return cls(
            DanceTransformer.of(network),
            **open_components(network.dtype, vae, image_encoder, arcface),
            music_to_pose=None if music_to_pose is None else DanceTransformer.of(music_to_pose),
            clip_resize=clip_resize or ("squash" if squashed else "crop"),
        )

    @classmethod
    def from_adapter(
        cls,
        adapter: str | Path | None,
        base: Base = None,
        vae: Any = None,
        image_encoder: Any = None,
        arcface: Any = None,
        music_to_pose: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        which: Which = "raw",
        size: str | None = None,
        predecessor: str | Path | None = None,
        clip_resize: ClipResize | None = None,
        quantize: Kind | None = None,
    ) -> DanceWithMusicPipeline:
        """A pipeline of trained weights on the CPU: an adapter's folder, a file that ``export.py`` wrote, a checkpoint
        (``which`` of its weights; ``predecessor``: what its stage started from, where that has moved), or None for the
        base of ``size``.

        ``base``: folder or file of the UNet instead of the one that it was trained on, or paths by setting
        (``{"weights.motion": ...}``), its frozen linear layers in 8 bits with ``quantize``. ``vae``: None for that of
        the weights' config. ``music_to_pose``: weights of any stage with a MusicToPose, in each of these forms, instead
        of the adapter's own. Raises ``ValueError`` and ``DamagedError`` as ``open_weights`` and ``load_network``."""
        weights = open_weights(adapter, which, family=FAMILY, size=size, predecessor=predecessor)
        paths = base_paths(base)
        network: Any = load_network(weights, paths, dtype=dtype, quantize=quantize)
        own = None if music_to_pose is None else open_music_to_pose(music_to_pose, which, paths, dtype)
        vae = network.config.weights.vae if vae is None else vae
        return cls.from_network(network, vae, image_encoder, arcface, own, clip_resize)

    @property
    def rate(self) -> float:
        """Frames per second: 30, or what of them the network was trained on."""
        return FRAME_RATE / self.transformer.network.config.frames.stride

    @torch.no_grad()
    def __call__(
        self,
        image: Any = None,
        song: str | Path | Track | None = None,
        pose: Any = None,
        image_pose: Any = None,
        music: Any = None,
        music_map: Any = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        min_guidance_scale: float | None = None,
        withhold_pose: bool | None = None,
        cfg_batch: Literal["together", "sequential"] = "together",
        context_length: int | None = None,
        context_overlap: int | None = None,
        scheduler: str | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        image_latents: Tensor | None = None,
        image_embeds: Tensor | None = None,
        face_embeds: Any = None,
        decode_chunk_size: int | None = None,
        output_type: Literal["np", "pt", "pil", "latent"] = "np",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DanceOutput | tuple:
        """Videos of one dance.

        Args:
            image: a photo of the dancer, or several, whose first shows the face.
            song: a sound or video file, or a ``Track``, a part of one; T is as many frames as it lasts at ``rate``.
            pose: ``[T, 134, 3]`` at ``rate`` (x and y divided by width and height of the video, confidence) instead of
                what MusicToPose makes of the song.
            image_pose: ``[134, 3]`` in the first photo, by which its face is cut out and from which a predicted dance
                starts; without it the network sees no face and starts where no point was found.
            music: rows ``[F, Dm]`` at ``rate`` instead of the song's 35 numbers.
            music_map: pictures of the music ``[F, C, H, W]`` at ``rate``, for a network that is guided by such.
            num_frames: the first of them only.
            height, width: None for the network's.
            num_inference_steps, guidance_scale, context_length, context_overlap: None for ``sampling`` of the config.
            min_guidance_scale: of the first frame, from which it rises evenly to ``guidance_scale`` at the last one
                (StableAnimator's code: 1 to 3).
            withhold_pose: whether the unconditional pass is without the pose too, as StableAnimator's is; None: where
                training dropped it.
            cfg_batch: both passes in one batch, or one after the other.
            scheduler: diffusers' name; the noise levels are ours whichever.
            num_videos_per_prompt: B.
            generator: one on the CPU for each sample makes a sample independent of its batch and device
                (``models.common.keyed.request_generators``).
            latents: the standard normal noise ``[B, T, 4, h, w]`` instead.
            image_latents, image_embeds, face_embeds: of the photos, ``[R, 4, h, w]`` (scaled), ``[R, D]`` and ``[512]``
                (not normalised), as shards hold them.
            decode_chunk_size: frames that are decoded at once; None for 4, each by itself. Stable Video Diffusion's
                decoder joins the frames of a chunk that is given.
            callback_on_step_end: called as (pipeline, step, timestep, {name: tensor}); tensors it returns go on.

        Returns a ``DanceOutput``, or its fields as a tuple. Raises ``ValueError``.
        """
        network = self.transformer.network
        config = network.config
        if network.phase == "m2p":
            raise ValueError(
                "this network is MusicToPose alone, expected one of a later stage; give the adapter of stage B or C, "
                "and this one as music_to_pose"
            )
        height, width = height or config.picture.height, width or config.picture.width
        check_sides(height, width, config.picture.multiple, "levels of the UNet and stride of the VAE")
        self.check_callback(callback_on_step_end_tensor_inputs)
        self.check_output(output_type)
        if cfg_batch not in ("together", "sequential"):
            raise ValueError(f"cfg_batch is {cfg_batch!r}, expected 'together' or 'sequential'")
        windows = make_windows(config, context_length, context_overlap)
        process = make_process(config)
        steps = num_inference_steps or config.sampling.steps
        process.scheduler(steps, scheduler)  # a name that there is not shows before anything is encoded
        rows = read_rows(config, song, music, pose is None)
        frames = num_frames or (len(rows) if pose is None else len(prepare_pose(pose)))
        if rows is not None and len(rows) < frames:
            raise ValueError(f"{len(rows)} rows of music given for a video of {frames} frames, expected as many")
        maps = read_maps(config, song, music_map, frames)
        noisy = (
            None
            if image_latents is not None
            else self.photo_noise(image, height, width, generator, num_videos_per_prompt)
        )
        photo = self.encode_photos(image, image_pose, height, width, image_latents, image_embeds, face_embeds, noisy)
        dance = None
        if pose is None:
            start = self.start_pose(image, image_pose, height, width)
            dance = self.predict_poses(rows[:frames], photo["embedding"][:, 0], start)
            points = dance.points[0].cpu()
        else:
            points = prepare_pose(pose, frames)
        conditions = self._conditions(photo, dance, num_videos_per_prompt)
        guidance = encode_dance(
            self.transformer, config, points, dance, rows, self._strength, (height, width), self._execution_device, maps
        ).expand(num_videos_per_prompt, -1, -1, -1, -1)
        still = (
            network.phase == "image" and config.backbone == "champ"
        )  # frames by themselves: what differs is the pose
        shape = (LATENT_CHANNELS, height // LATENT_STRIDE, width // LATENT_STRIDE)
        count = 1 if still and latents is None else frames
        noise = self.make_noise((num_videos_per_prompt, count, *shape), generator, latents)
        noise = noise.expand(-1, frames, *shape)
        scale = config.sampling.guidance_scale if guidance_scale is None else guidance_scale
        scales = scale if min_guidance_scale is None else torch.linspace(min_guidance_scale, scale, frames)
        dropout = config.diffusion
        if withhold_pose is not None:
            dropout = dropout.model_copy(update={"drop_guidance": float(withhold_pose)})
        passes = make_passes(self.transformer, conditions, guidance, dropout, scale)
        self.offload_encoders()
        with self.progress_bar(total=steps) as bar:
            on_step = self.on_step(bar, callback_on_step_end, callback_on_step_end_tensor_inputs)
            found = sample(
                self.transformer, passes, noise, process, steps, scales, windows, cfg_batch, scheduler, on_step
            )
        output = DanceOutput(self.decode(found, output_type, decode_chunk_size), points)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def encode_photos(
        self,
        image: Any,
        image_pose: Any = None,
        height: int | None = None,
        width: int | None = None,
        image_latents: Tensor | None = None,
        image_embeds: Tensor | None = None,
        face_embeds: Any = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``references``, ``embedding``, ``face`` and ``face_given`` of one dancer as ``conditions.Conditions`` has
        them, on the CPU; ``references`` of each sample where ``noise`` ``[B, R, 3, H, W]`` is on their pixels. Raises
        ``ValueError``."""
        config = self.transformer.network.config
        height, width = height or config.picture.height, width or config.picture.width
        whole: list = []
        if image is not None:
            whole, middle = prepare_photos(image, height, width)
        if (image is None) and (image_latents is None or image_embeds is None):
            raise ValueError("no image given, expected a photo of the dancer, or image_latents and image_embeds of it")
        if image_latents is None:
            image_latents = self.need("vae", lambda vae: photo_latents(vae, middle, noise))
        if image_embeds is None:
            image_embeds = self.embed(whole)
        count = image_latents.shape[-4]
        if len(image_embeds) != count or image_embeds.shape[-1] != config.unet.cross_dim:
            raise ValueError(
                f"embeddings {list(image_embeds.shape)} given for {count} photos, expected as many of "
                f"{config.unet.cross_dim} numbers; give the image encoder that the shards were built with"
            )
        if face_embeds is None and image_pose is not None and self.face_encoder is not None and whole:
            face = cut_face(whole[0], image_pose)
            face_embeds = None if face is None else self.face_encoder.encoder.encode([face])[0]
        face, given = prepare_face(face_embeds)
        return {
            "references": image_latents.float().reshape(-1, *image_latents.shape[-4:]),
            "embedding": image_embeds.to(self.transformer.dtype)[None],
            "face": face,
            "face_given": given,
        }

    def photo_noise(self, image: Any, height: int, width: int, generator: Generators, samples: int) -> Tensor | None:
        """What each sample adds to the photos' pixels in -1..1, fp32 ``[B, R, 3, H, W]`` on the CPU, the first that is
        drawn of ``generator``, as in Stable Video Diffusion's pipeline; None where the network was trained without."""
        strength = pixel_noise(self.transformer.network.config)
        if not strength or image is None:
            return None
        count = len(prepare_photos(image, height, width)[0])
        return strength * self.make_noise((samples, count, 3, height, width), generator, None).cpu()

    def embed(self, photos: Sequence[np.ndarray]) -> Tensor:
        """CLIP's embeddings of pictures uint8 ``[H, W, 3]``, fp32 ``[R, D]``."""
        self.need("image_encoder")
        resize: Any = self.config.clip_resize
        return PictureEmbedder.of(self.image_encoder, self.image_processor, resize).encode(photos)

    def start_pose(self, image: Any, image_pose: Any, height: int, width: int) -> Tensor:
        """Where a predicted dance starts, ``[1, 134, 3]``, in the video, which shows the middle of the photo; no point
        where no pose is known."""
        if image_pose is None:
            return torch.zeros(1, KEYPOINTS, 3)
        pose = prepare_pose(image_pose, 1)
        if image is None:
            return pose
        whole, _ = prepare_photos(image, height, width)
        return move_pose(pose, whole[0].shape[:2], height, width)

    def predict_poses(self, music: Tensor, embedding: Tensor, start: Tensor) -> Dance:
        """MusicToPose's poses of ``music`` ``[T, Dm]``, CLIP's ``embedding`` ``[1, D]`` and the pose ``start`` ``[1,
        134, 3]``, in windows of ``frames.m2p``. Raises ``ValueError`` where there is no MusicToPose, and where it hears
        other numbers."""
        component = self.music_to_pose or self.transformer
        network = component.network
        if network.phase == "guidance":
            raise ValueError("no pose given, and the network has no MusicToPose; give pose=, or music_to_pose")
        config, device = network.config, self._execution_device
        ours = self.transformer.network.config
        if (config.unet.cross_dim, config.frames.stride) != (ours.unet.cross_dim, ours.frames.stride):
            raise ValueError(
                f"MusicToPose of CLIP's {config.unet.cross_dim} numbers and stride {config.frames.stride} given, "
                f"expected {ours.unet.cross_dim} and {ours.frames.stride}; give one of the denoiser's backbone"
            )
        if music.shape[-1] != config.m2p.music_dim:
            raise ValueError(
                f"music of {music.shape[-1]} numbers per frame given, expected {config.m2p.music_dim} as MusicToPose "
                "hears; give music= with such rows"
            )

        def poses(*inputs: Tensor) -> dict[str, Tensor]:
            return component("poses", *(value.to(device) for value in inputs))

        return predict_dance(poses, config.m2p, music[None], embedding, start, config.frames.m2p)

    def decode(self, latents: Tensor, output_type: str, chunk: int | None = None) -> Any:
        """Pixels of scaled latents ``[B, T, 4, h, w]``, as ``DanceOutput.frames``."""
        if output_type == "latent":
            return latents
        videos = [torch.cat(list(self.decoded(latent, chunk))).movedim(0, 1) for latent in latents]
        return self.video_processor.postprocess_video(torch.stack(videos), output_type)

    def decoded(self, latents: Tensor, chunk: int | None = None) -> Iterator[Tensor]:
        """As ``decoding.decode_frames``, of scaled latents ``[T, 4, h, w]``; ``chunk`` as ``decode_chunk_size``."""
        return decode_frames(self.need("vae"), latents, chunk)

    def _conditions(self, photo: Mapping[str, Tensor], dance: Dance | None, samples: int) -> dict[str, Any]:
        """Nothing withheld, the schedules at the end of the stage."""
        network, device = self.transformer.network, self._execution_device
        found = dict(photo)
        if network.config.face.source == "m2p" and dance is not None:
            found["face"] = dance.output["face"].cpu() * photo["face"].norm(dim=-1, keepdim=True)
        tensors = {name: value.expand(samples, *value.shape[1:]).to(device) for name, value in found.items()}
        yes = torch.ones(samples, dtype=torch.bool, device=device)
        return {
            **tensors,
            "reference_given": yes,
            "embedding_given": yes,
            "guidance_given": yes,
            "condition_scale": self._strength,
            "identity_scale": 1.0,
        }

    @property
    def _strength(self) -> float:
        """Factor on the guidance at the end of the stage."""
        network = self.transformer.network
        return condition_scale(network.config.schedules, network.phase, Progress(1, 1, network.stage, 0, False))
