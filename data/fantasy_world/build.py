"""FantasyWorld's part of a build: which clips there are, how one is read, how several become samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecoach.data.building.jobs import BuildJob, EncodedSample, RawError, RawItem
from stagecoach.data.fantasy_world.clip import Clip, ClipOptions, precheck, prepare_clip
from stagecoach.data.fantasy_world.raw import METADATA, RawClip, read_metadata
from stagecoach.data.fantasy_world.schema import (
    CLIP_TOKENS,
    LATENT_STRIDE,
    MASK_CHANNELS,
    fantasy_world_schema,
    latent_frames,
)
from stagecoach.data.fantasy_world.statistics import ClipStatistics
from stagecoach.data.files import sha256_file
from stagecoach.data.format.schema import SampleSchema

if TYPE_CHECKING:
    from stagecoach.data.encoding.encoders import EncoderEntry
    from stagecoach.data.fantasy_world.encode import Encoders

PART_BYTES = 0.95e9
"""Below the 1 GB of a shard, so that a part does not leave a small one beside a full one."""
MOST_ITEMS = 1000
"""Of small clips a part takes no more, so that a killed build has little to make again."""


@dataclass(frozen=True)
class EncoderPaths:
    """Folders in the Hugging Face layout. ``image_encoder`` makes shards for image-to-video backbones."""

    vae: Path
    text_encoder: Path
    tokenizer: Path
    image_encoder: Path | None = None


@dataclass(frozen=True)
class _Sizes:
    channels: int
    text: int
    image: int | None


class FantasyWorldJob(BuildJob):
    """Clips of the raw data set ``raw``. Items' records are ``RawClip``. Raises ``EncoderError`` where an encoder's
    configuration cannot be read."""

    together = 8
    """Clips take at most 160 MB each when read, at 81 x 480 x 832."""

    def __init__(self, raw: Path, clip: ClipOptions, encoders: EncoderPaths) -> None:
        self._raw, self._clip, self._paths = raw, clip, encoders
        self._encoders: Encoders | None = None

    @cached_property
    def schema(self) -> SampleSchema:
        sizes = self._sizes
        image = {} if sizes.image is None else {"image_to_video": True, "clip_dim": sizes.image}
        return fantasy_world_schema(sizes.channels, sizes.text, **image)

    @cached_property
    def part_items(self) -> int:
        return int(min(max(PART_BYTES // self._sample_bytes(), 1), MOST_ITEMS))

    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        clips, unusable = read_metadata(self._raw)
        return [RawItem(clip.key, clip.split, clip) for clip in clips], unusable

    def settings(self) -> dict[str, Any]:
        return {
            "metadata_sha256": sha256_file(self._raw / METADATA),
            "clip": asdict(self._clip),
            "encoders": self._entries(),
        }

    def check(self, item: RawItem) -> None:
        precheck(item.record, self._clip)

    def start(self) -> None:
        from stagecoach.data.fantasy_world.encode import Encoders  # takes seconds

        paths = self._paths
        self._encoders = Encoders(paths.vae, paths.text_encoder, paths.tokenizer, paths.image_encoder)

    def encoders(self) -> Mapping[str, Any]:
        return self._encoders.entries

    def prepare(self, item: RawItem) -> Clip:
        return prepare_clip(item.record, self._clip)

    def encode(self, items: list[RawItem], prepared: list[Clip]) -> list[EncodedSample]:
        clips: list[RawClip] = [item.record for item in items]
        samples = self._encoders.encode(prepared, [clip.prompt for clip in clips])
        return [
            EncodedSample(arrays, {"prompt": raw.prompt, "scale": clip.scale}, clip.distorted)
            for raw, clip, arrays in zip(clips, prepared, samples, strict=True)
        ]

    def statistics(self) -> ClipStatistics:
        return ClipStatistics(self._clip.frames)

    def summary(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Clips whose camera file gives a lens distortion, which is ignored."""
        return {"distorted": sum(split["distorted_count"] for split in statistics.values())}

    @cached_property
    def _sizes(self) -> _Sizes:
        from stagecoach.data.encoding.encoders import AutoencoderKLWan, CLIPVisionModel, UMT5EncoderModel, load_config

        image = self._paths.image_encoder
        return _Sizes(
            load_config(AutoencoderKLWan, self._paths.vae)["z_dim"],
            load_config(UMT5EncoderModel, self._paths.text_encoder)["d_model"],
            load_config(CLIPVisionModel, image)["hidden_size"] if image else None,
        )

    def _entries(self) -> dict[str, EncoderEntry]:
        """What the encoders will say of themselves once they are loaded, but for the tokenizer."""
        from stagecoach.data.encoding.encoders import (
            AutoencoderKLWan,
            CLIPVisionModel,
            UMT5EncoderModel,
            default_device,
            encoder_entry,
            encoder_folder,
            hash_files,
        )

        device, paths = default_device(), self._paths
        entries: dict[str, Any] = {
            "vae": encoder_entry(AutoencoderKLWan, paths.vae, device),
            "text_encoder": encoder_entry(UMT5EncoderModel, paths.text_encoder, device),
            "tokenizer": hash_files(sorted(encoder_folder(paths.tokenizer).glob("*"))),
        }
        if paths.image_encoder:
            entries["image_encoder"] = encoder_entry(CLIPVisionModel, paths.image_encoder, device)
        return entries

    def _sample_bytes(self) -> int:
        """Of a sample whose prompt has as many tokens as the backbone takes; the first frame as JPEG is about an eighth
        of its pixels."""
        from stagecoach.data.encoding.encoders import TEXT_LENGTH

        sizes, clip = self._sizes, self._clip
        area = clip.height * clip.width
        values = latent_frames(clip.frames) * area // LATENT_STRIDE**2 * sizes.channels
        values += clip.frames * area + TEXT_LENGTH * sizes.text
        if sizes.image is not None:
            values += latent_frames(clip.frames) * area // LATENT_STRIDE**2 * (MASK_CHANNELS + sizes.channels)
            values += CLIP_TOKENS * sizes.image
        return 2 * values + 3 * area // 8
