"""launch/build_shards.py for this family, as people type it."""

from __future__ import annotations

import numpy as np
import torch

from stagecoach.data.building.captioned import CaptionedOptions
from stagecoach.data.encoding.pipeline_folder import PipelineFolder
from stagecoach.data.stable_diffusion_3.builder import FamilyBuilder
from stagecoach.data.stable_diffusion_3.schema import stable_diffusion_3_schema
from stagecoach.data.streaming.dataset import ShardSet
from tests.commands import run_shards
from tests.data.building.raw_files import files_of_no_item

FAMILY = ("--family", "stable_diffusion_3")
CLIP, T5 = 77, 256


def test_a_picture_folder_becomes_shards_of_what_the_pipeline_makes_of_it(tmp_path):
    raw, base, shards = (str(tmp_path / name) for name in ("raw", "sd3", "shards"))
    size = ("--height", "64", "--width", "96")
    made, _ = run_shards("synthesize", *FAMILY, "--output", raw, "--clips", "4", *size, "--encoders", base)
    assert made["pictures"] == 4
    built, _ = run_shards("build", *FAMILY, "--input", raw, "--output", shards, "--base", base, "--sizes", "64x96")
    assert sum(built["samples"].values()) == 4
    checked, code = run_shards("check", shards)
    assert (checked["problems"], code) == ([], 0)

    # The widths of the tiny encoders: 12 of each CLIP, 24 of T5.
    samples = ShardSet.open(tmp_path / "shards" / "train", stable_diffusion_3_schema(24, 24))
    sample = samples.read(0)
    pipeline = PipelineFolder(tmp_path / "sd3").load_text_pipeline(torch.device("cpu"))
    expected = FamilyBuilder().encode_texts(pipeline, [sample.meta["caption"]])
    assert expected["prompt_embeds"].shape == (1, CLIP + T5, 24)
    for name, values in expected.items():
        stored = torch.from_numpy((sample.arrays[name].astype(np.uint32) << 16).view(np.float32))
        torch.testing.assert_close(stored, values[0].float(), atol=1e-2, rtol=1e-2)
    assert sample.arrays["latent"].shape == (16, 8, 12)


def test_every_raw_file_belongs_to_an_item_or_to_the_settings_of_all_parts(tmp_path):
    raw, base = tmp_path / "raw", tmp_path / "sd3"
    size = ("--height", "64", "--width", "96")
    run_shards("synthesize", *FAMILY, "--output", raw, "--clips", "4", *size, "--encoders", base)
    job = FamilyBuilder().make_job(raw, CaptionedOptions(base, ((64, 96),)))
    captions = {f"picture_{index:05d}.txt" for index in range(4)}
    assert files_of_no_item(raw, job) == {"synthetic.json", *captions}
    # Every item's caption is told by the settings of its part instead.
    told = job.settings()
    for name in captions:
        text = (raw / name).read_text()
        (raw / name).write_text(f"{text} at night")
        assert job.settings() != told
        (raw / name).write_text(text)
    assert job.settings() == told
