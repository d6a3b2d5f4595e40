"""How a build makes FantasyWorld's samples: which clips there are, how one is read, how several become samples."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from stagecoach.data.building.jobs import EncodedSample, EncodingJob, RawError, RawItem, items_per_part
from stagecoach.data.building.options import Argument
from stagecoach.data.fantasy_world.clip import Clip, clips_of, precheck, prepare_clip
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.raw import METADATA, read_metadata
from stagecoach.data.fantasy_world.schema import (
    CLIP_TOKENS,
    LATENT_STRIDE,
    MASK_CHANNELS,
    fantasy_world_schema,
    latent_frames,
)
from stagecoach.data.fantasy_world.statistics import ClipStatistics, describe
from stagecoach.data.files import sha256_file
from stagecoach.data.format.schema import SampleSchema

PART_BYTES = 0.95e9
"""Below the 1 GB of a shard, so that a part does not leave a small one next to a full one."""
READERS = 8
"""Threads that look how many clips a video gives."""
MOST_ITEMS = 1000
"""Of small clips a part takes no more, so that a killed build has little to make again."""


@dataclass(frozen=True)
class EncoderPaths:
    """Folders in the Hugging Face layout. ``image_encoder`` makes shards for image-to-video backbones."""

    vae: Annotated[Path, Argument("folder of the AutoencoderKLWan")]
    text_encoder: Annotated[Path, Argument("folder of the umT5")]
    tokenizer: Annotated[Path, Argument("folder of the tokenizer")]
    image_encoder: Annotated[
        Path | None, Argument("folder of the CLIP vision model; adds what image-to-video backbones need")
    ] = None


@dataclass(frozen=True)
class _Sizes:
    channels: int
    text: int
    image: int | None


class FantasyWorldJob(EncodingJob):
    """Clips of the raw data set ``raw``. Items' records are ``RawClip``. Raises ``EncoderError`` where an encoder's
    configuration cannot be read."""

    together = 8
    """Clips take at most 160 MB each when read, at 81 x 480 x 832."""

    def __init__(self, raw: Path, clip: ClipOptions, encoders: EncoderPaths) -> None:
        self._raw, self._clip, self._paths = raw, clip, encoders

    @cached_property
    def schema(self) -> SampleSchema:
        sizes = self._sizes
        image = {} if sizes.image is None else {"image_to_video": True, "clip_dim": sizes.image}
        return fantasy_world_schema(sizes.channels, sizes.text, **image)

    @cached_property
    def part_items(self) -> int:
        return items_per_part(self._sample_bytes(), PART_BYTES, MOST_ITEMS)

    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        clips, unusable = read_metadata(self._raw)
        if self._clip.clips_per_video == 1:
            return [RawItem(clip.key, clip.split, clip) for clip in clips], unusable
        with ThreadPoolExecutor(READERS) as pool:
            found = [(video, pool.submit(clips_of, video, self._clip)) for video in clips]
        several = [(clip, video.key) for video, made in found for clip in made.result()]
        return [RawItem(clip.key, clip.split, clip, group) for clip, group in several], unusable

    def settings(self) -> dict[str, Any]:
        return {
            "metadata_sha256": sha256_file(self._raw / METADATA),
            "clip": asdict(self._clip),
            "encoders": {**self.entries, "tokenizer": self.entries["tokenizer"]["sha256"]},
        }

    def check(self, item: RawItem) -> None:
        precheck(item.record, self._clip)

    def prepare(self, item: RawItem) -> Clip:
        return prepare_clip(item.record, self._clip)

    def load(self) -> dict[str, Any]:
        from stagecoach.data.encoding.encoders import default_device
        from stagecoach.data.encoding.image_encoders import ImageEncoder
        from stagecoach.data.encoding.latent_encoders import VideoEncoder
        from stagecoach.data.encoding.text_encoders import TextEncoder

        paths, device = self._paths, default_device()
        return {
            "video": VideoEncoder(paths.vae, device),
            "text": TextEncoder(paths.text_encoder, paths.tokenizer, device),
            "image": ImageEncoder(paths.image_encoder, device) if paths.image_encoder else None,
        }

    def encode(self, items: list[RawItem], prepared: list[Clip]) -> list[EncodedSample]:
        from stagecoach.data.encoding.encoders import bits

        videos, prompts = [clip.frames for clip in prepared], [item.record.prompt for item in items]
        encoded = {"latent": self.models["video"].encode(videos), "text": self.models["text"].encode(prompts)}
        if self.models["image"] is not None:
            encoded["image_latent"] = self.models["video"].image_latents(videos)
            encoded["clip"] = self.models["image"].encode([video[0] for video in videos])
        frames, height, width, _ = videos[0].shape
        found = tuple(encoded["latent"][0].shape[1:])
        expected = latent_frames(frames), height // LATENT_STRIDE, width // LATENT_STRIDE
        if found != expected:
            raise ValueError(
                f"the VAE {self._paths.vae.resolve().name} makes latents of {found}, expected "
                f"{expected} of a clip of {frames} x {height} x {width}; give Wan2.1's"
            )
        return [
            EncodedSample(
                {
                    **{name: bits(values[i]) for name, values in encoded.items()},
                    "depth": clip.depth,
                    "extrinsics": clip.extrinsics,
                    "intrinsics": clip.intrinsics,
                    "frame": clip.frames[0],
                },
                {"prompt": prompts[i], "scale": clip.scale, "valid": round(clip.valid, 6), "warp": clip.warp.as_dict()},
                clip.distorted,
            )
            for i, clip in enumerate(prepared)
        ]

    def statistics(self) -> ClipStatistics:
        return ClipStatistics(self._clip.frames)

    def summary(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Clips whose camera file gives a lens distortion, which is ignored, and what the depth is like."""
        merged = ClipStatistics.merge(list(statistics.values()))
        return {"distorted": merged.get("distorted_count", 0), **describe(merged)}

    @cached_property
    def _models(self) -> dict[str, tuple[type, Path]]:
        from diffusers import AutoencoderKLWan
        from transformers import CLIPVisionModel, UMT5EncoderModel

        paths = self._paths
        image = {"image_encoder": (CLIPVisionModel, paths.image_encoder)} if paths.image_encoder else {}
        return {"vae": (AutoencoderKLWan, paths.vae), "text_encoder": (UMT5EncoderModel, paths.text_encoder), **image}

    @cached_property
    def entries(self) -> dict[str, Any]:
        from stagecoach.data.encoding.encoders import encoder_entries

        found = encoder_entries(self._models, {"tokenizer": (self._paths.tokenizer, "text_encoder")})
        if "image_encoder" in found:
            from stagecoach.data.encoding.image_encoders import ImageEncoder

            found["image_encoder"] = {**found["image_encoder"], "input": ImageEncoder.INPUT}
        return found

    @cached_property
    def _sizes(self) -> _Sizes:
        from stagecoach.data.encoding.encoders import load_config

        configs = {role: load_config(*model) for role, model in self._models.items()}
        image = configs["image_encoder"]["hidden_size"] if "image_encoder" in configs else None
        return _Sizes(configs["vae"]["z_dim"], configs["text_encoder"]["d_model"], image)

    def _sample_bytes(self) -> int:
        """Of a sample whose prompt has as many tokens as the backbone takes; the first frame as JPEG is about an eighth
        of its pixels."""
        from stagecoach.data.encoding.text_encoders import UMT5_LENGTH

        sizes, clip = self._sizes, self._clip
        area = clip.height * clip.width
        values = latent_frames(clip.frames) * area // LATENT_STRIDE**2 * sizes.channels
        values += clip.frames * area + UMT5_LENGTH * sizes.text
        if sizes.image is not None:
            values += latent_frames(clip.frames) * area // LATENT_STRIDE**2 * (MASK_CHANNELS + sizes.channels)
            values += CLIP_TOKENS * sizes.image
        return 2 * values + 3 * area // 8
