"""A folder of pictures with captions becomes shards, with the text states of a diffusers pipeline."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from stagecoach.data.building.build import build
from stagecoach.data.building.captioned import CaptionedBuilder, CaptionedOptions, SyntheticPictures, read_captioned
from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.encoding.encoders import EncoderError
from stagecoach.data.encoding.pipeline_folder import PipelineFolder
from stagecoach.data.encoding.tiny_encoders import write_pipeline_encoders
from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.streaming.dataset import ShardSet

CAPTIONS = ("a red ball", "two blue blocks on grass")


class ToyBuilder(CaptionedBuilder):
    pipeline, vae_layout = "StableDiffusion3Pipeline", "sd3"
    inference: bool

    def schema(self, configs, more):
        fields = [
            Field("latent", "bf16", (configs["vae"]["latent_channels"], "h", "w")),
            Field("text", "bf16", ("L", configs["text_encoder_3"]["d_model"]), pad=0),
            Field("pooled", "bf16", (2 * configs["text_encoder"]["projection_dim"],)),
        ]
        return SampleSchema("toy_pictures", 1, (*fields, *more))

    def encode_texts(self, pipeline, captions):
        self.inference = torch.is_inference_mode_enabled()
        options = {"do_classifier_free_guidance": False, "max_sequence_length": 16}
        text, _, pooled, _ = pipeline.encode_prompt(captions, None, None, **options)
        return {"text": text, "pooled": pooled}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Stable Diffusion 3 without its transformer."""
    folder = tmp_path_factory.mktemp("tiny") / "sd3"
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    write_pipeline_encoders(folder, "StableDiffusion3Pipeline", "sd3", pictures, CAPTIONS, 0)
    return folder


def write(folder, name: str, caption: str | None, size=(64, 64)) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size, "red").save(folder / f"{name}.png")
    if caption is not None:
        (folder / f"{name}.txt").write_text(caption)


def test_captions_are_those_of_the_text_files(tmp_path):
    write(tmp_path, "a", "a red\nball ")
    write(tmp_path / "b.c", "d e", "a block")
    write(tmp_path, "no", None)
    write(tmp_path, "blank", " ")
    items, bad = read_captioned(tmp_path)
    assert [(item.key, item.record.caption) for item in items] == [("a", "a red ball"), ("b_c_d_e", "a block")]
    assert [name for name, _ in bad] == ["blank.png", "no.png"]
    assert "no.txt: not readable (No such file or directory)" in str(bad[1][1])


def test_files_that_are_no_pictures_are_named(tmp_path, base, caplog):
    """A picture of a format that is not read is a bad item, another file worth a word; once, not by each worker."""
    write(tmp_path / "raw", "a", "a red ball")
    for name in ("b.heic", "b.txt", "c.csv", ".DS_Store"):
        (tmp_path / "raw" / name).touch()
    job = ToyBuilder().make_job(tmp_path / "raw", CaptionedOptions(base, ((64, 64),)))
    items, bad = job.items()
    assert [item.key for item in items] == ["a"]
    expected = "b.heic: a format that is not read, expected PNG, JPEG, WebP, TIFF, BMP or GIF"
    assert [(name, str(error)) for name, error in bad] == [("b.heic", f"{tmp_path / 'raw'}/{expected}")]
    pickle.loads(pickle.dumps(job)).items()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'raw'}: passed over 1 .csv (first c.csv), no PNG, JPEG, WebP, TIFF, BMP or GIF"
    ]


@pytest.mark.parametrize("metadata", [False, True])
def test_names_as_a_mac_spells_them_belong_together(tmp_path, metadata):
    """The picture's letters are taken apart (NFD), those of its caption composed, and the other way round."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    write(tmp_path, f"{apart}-1", None)
    write(tmp_path, f"{composed}-2", None)
    names = {f"{composed}-1": "a ball", f"{apart}-2": "a block"}
    for name, text in names.items():
        (tmp_path / f"{name}.txt").write_text(text)
    if metadata:
        lines = [{"file_name": f"{name}.png", "text": text} for name, text in names.items()]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items, bad = read_captioned(tmp_path)
    assert not bad
    assert {item.record.caption: item.key for item in items} == {"a ball": "café-1", "a block": "café-2"}


def test_a_picture_that_the_metadata_names_and_is_not_there_is_named(tmp_path):
    write(tmp_path, "a", None)
    lines = [{"file_name": name, "text": "a ball"} for name in ("a.png", "b.jpg")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items, ((name, error),) = read_captioned(tmp_path)
    assert ([item.key for item in items], name) == (["a"], "b.jpg")
    assert str(error).endswith("b.jpg: missing, expected the picture that metadata.jsonl names")


def test_a_sixteen_bit_picture_that_is_turned_is_built_as_it_is_seen(tmp_path, base):
    """EXIF 6 and a ramp of 16 bits: height and width swap, grey is scaled and not clipped to white."""
    (tmp_path / "raw").mkdir()
    ramp = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (64, 1))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(ramp).save(tmp_path / "raw" / "a.tif", exif=turned)
    (tmp_path / "raw" / "a.txt").write_text("a ramp")
    job = ToyBuilder().make_job(tmp_path / "raw", CaptionedOptions(base, ((96, 64), (64, 96))))
    (item,), bad = job.items()
    assert not bad
    job.check(item)
    picture = job.prepare(item)
    assert picture.shape == (96, 64, 3)
    np.testing.assert_allclose(picture[:, 0, 0], np.linspace(0, 255, 96), atol=1)


def test_captions_and_splits_are_those_of_the_metadata(tmp_path):
    write(tmp_path, "a", None)
    write(tmp_path, "b", None)
    lines = [{"file_name": "a.png", "text": "a ball", "split": "val"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items, bad = read_captioned(tmp_path)
    assert [(item.key, item.split, item.record.caption) for item in items] == [("a", "val", "a ball")]
    assert str(bad[0][1]).endswith("b.png: no caption found, expected a text in metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(RawError, match=r"metadata\.jsonl:1: not readable \(KeyError: 'file_name'\)"):
        read_captioned(tmp_path)


def test_byte_order_marks_blank_lines_and_line_separators_inside_a_caption_are_read(tmp_path):
    write(tmp_path, "a", None)
    line = json.dumps({"file_name": "a.png", "text": "a\u2028ball"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(f"\ufeff{line}\n\n", encoding="utf-8")
    items, bad = read_captioned(tmp_path)
    assert [item.record.caption for item in items] == ["a ball"]
    assert not bad


def test_samples_hold_latents_and_what_the_pipeline_says_of_the_captions(base, tmp_path):
    write(tmp_path / "raw", "a", CAPTIONS[0])
    write(tmp_path / "raw", "b", CAPTIONS[1], (192, 64))
    options = CaptionedOptions(base, ((64, 64), (32, 96)), preview=32)
    job = ToyBuilder().make_job(tmp_path / "raw", options)
    report = build(job, tmp_path / "shards", BuildOptions(holdout=0))
    assert report.samples == {"train": 2}
    assert job.builder.inference
    shards = ShardSet.open(tmp_path / "shards/train", job.schema)
    samples = {sample.key: sample for sample in map(shards.read, range(2))}
    assert [samples[key].arrays["latent"].shape for key in "ab"] == [(16, 8, 8), (16, 4, 12)]
    assert samples["b"].arrays["image"].shape == (11, 32, 3)
    assert samples["b"].meta["caption"] == CAPTIONS[1]
    pipeline = PipelineFolder(base).load_text_pipeline(torch.device("cpu"))
    expected = ToyBuilder().encode_texts(pipeline, list(CAPTIONS))
    for name, values in expected.items():
        stored = np.stack([samples[key].arrays[name] for key in "ab"]).astype(np.uint32) << 16
        torch.testing.assert_close(torch.from_numpy(stored.view(np.float32)), values, atol=1e-2, rtol=1e-2)
    assert set(json.loads((tmp_path / "shards/train/manifest.json").read_text())["encoders"]) == set(
        PipelineFolder(base).entries
    )


def test_a_synthetic_set_is_built_with_encoders_of_its_own(tmp_path):
    builder = ToyBuilder()
    builder.write_raw(tmp_path / "raw", 3, 0, SyntheticPictures(64, 64), iter)
    builder.write_encoders(tmp_path / "raw", tmp_path / "sd3", 0)
    items, bad = read_captioned(tmp_path / "raw")
    assert len(items) == 3
    assert not bad
    assert len({item.record.caption for item in items}) == 3
    job = builder.make_job(tmp_path / "raw", CaptionedOptions(tmp_path / "sd3", ((64, 64),)))
    assert build(job, tmp_path / "shards", BuildOptions(workers=2)).samples == {"train": 2, "val": 1}


def test_a_folder_that_is_no_pipeline_is_named(tmp_path):
    with pytest.raises(EncoderError, match=r"model_index\.json: not readable"):
        PipelineFolder(tmp_path)
