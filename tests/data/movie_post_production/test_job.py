"""From the guide's layout to samples that the reader takes: computed or precomputed, what is bad is named."""

import json
import pickle

import numpy as np
import pytest
import torch

from stagecoach.data.builders import builder
from stagecoach.data.building.jobs import RawError
from stagecoach.data.encoding.encoders import EncoderError
from stagecoach.data.encoding.image_encoders import ClipEncoder, DinoEncoder
from stagecoach.data.encoding.latent_encoders import LatentEncoder
from stagecoach.data.encoding.text_encoders import PooledTextEncoder, T5TextEncoder
from stagecoach.data.format.schema import SchemaError
from stagecoach.data.format.shards import ShardWriter, index_path
from stagecoach.data.movie_post_production.captions import read_captions
from stagecoach.data.movie_post_production.crops import cut
from stagecoach.data.movie_post_production.job import MovieJob
from stagecoach.data.movie_post_production.options import BuildOptions
from stagecoach.data.movie_post_production.schema import movie_post_production_schema, valid_objects
from stagecoach.data.pictures import read_picture
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.stream import collate
from tests.data.building.raw_files import files_of_no_item
from tests.data.movie_post_production.built import PRECOMPUTED, floats, make, write_precomputed
from tests.data.movie_post_production.conftest import PICTURES, TEXT_LENGTH

CPU = torch.device("cpu")
SCHEMA = movie_post_production_schema(16, 24, 20, 12, 16)


def test_samples_hold_what_the_encoders_make_of_the_files(samples, synthetic, encoders):
    pictures = {p.key: p for p in read_captions(synthetic)[0]}
    assert set(samples) == set(pictures)
    vae = LatentEncoder(encoders / "vae", CPU)
    t5 = T5TextEncoder(encoders / "text_encoder_2", encoders / "tokenizer_2", CPU, TEXT_LENGTH)
    pooled = PooledTextEncoder(encoders / "text_encoder", encoders / "tokenizer", CPU)
    clip, dino = ClipEncoder(encoders / "image_encoder", CPU), DinoEncoder(encoders / "dino", CPU)
    for key, sample in samples.items():
        picture = pictures[key]
        crops = [cut(read_picture(o.reference.image), o.reference.box, (28, 28)) for o in picture.objects]
        expected = {
            "latent": vae.encode([np.asarray(read_picture(picture.image))])[0],
            "t5": t5.encode([picture.caption])[0],
            "pooled": pooled.encode([picture.caption])[0],
            "object_text": torch.stack(pooled.encode([f"{o.category}, {o.caption}" for o in picture.objects])),
        }
        for name, value in expected.items():
            torch.testing.assert_close(floats(sample.arrays[name]), value, atol=1e-3, rtol=2**-7)
        for name, encoder in (("clip", clip), ("dino", dino)):
            found = torch.from_numpy(sample.arrays[name].astype(np.float32))
            torch.testing.assert_close(found, torch.stack(encoder.encode(crops)), atol=1e-3, rtol=0)
        np.testing.assert_array_equal(sample.arrays["boxes"], np.array([o.box for o in picture.objects], np.float32))
        assert sample.arrays["depth"].tolist() == [o.depth for o in picture.objects]
        assert (sample.meta["image_id"], sample.meta["caption"]) == (picture.image_id, picture.caption)
        assert sample.meta["crop"] == [0, 0, 1, 1]
        assert sample.meta["objects"][0]["ref_image_id"] == picture.objects[0].reference.image_id
        assert "ref_image_id" not in sample.meta["objects"][1]


def test_references_are_those_of_the_other_picture(samples):
    """Each of two partners holds the vector of the object as the other shows it, so the two differ."""
    for number in range(0, PICTURES, 2):
        one, other = (samples[f"scene_{n:05d}"].arrays["dino"][0].astype(float) for n in (number, number + 1))
        assert 0.3 < one @ other < 0.99999


def test_padding_is_no_object(samples):
    """Regression D9: what collation adds to the shorter sample is recognised."""
    chosen = [samples[f"scene_{n:05d}"] for n in (0, 1, 4)]
    counts = [len(s.arrays["boxes"]) for s in chosen]
    assert len(set(counts)) > 1
    batch = collate(SCHEMA, chosen)
    assert batch["boxes"].shape == (3, max(counts), 4)
    assert valid_objects(batch["boxes"]).sum(1).tolist() == counts
    assert batch["dino"].shape == (3, max(counts), 16)
    assert batch["t5"].shape == (3, TEXT_LENGTH, 24)


def test_vectors_of_another_width_are_refused_when_shards_are_opened(shards):
    """Regression D25: 512 for 768."""
    with pytest.raises(SchemaError, match=r"field 'clip' was built as f16 \['N', 12\], expected f16 \['N', 768\]"):
        ShardSet.open(shards / "train", movie_post_production_schema(16, 24, 20, 768, 16))


def test_a_reader_may_leave_previews_and_object_texts_out(shards):
    schema = movie_post_production_schema(16, 24, 20, 12, 16, object_text=False, image=False)
    assert set(ShardSet.open(shards / "train", schema).read(0).arrays) == {f.name for f in schema.fields}


def test_the_manifest_names_the_encoders_and_sums_the_split(shards):
    train = ShardSet.open(shards / "train", SCHEMA)
    assert set(train.manifest.encoders) == {
        "vae",
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "image_encoder",
        "dino",
    }
    assert train.manifest.encoders["dino"]["name"] == "Dinov2Model"
    assert len(train.manifest.encoders["vae"]["sha256"]) == 64
    found = [train.read(i).arrays for i in range(len(train))]
    statistics = train.statistics
    assert statistics["samples"] == len(found)
    assert sum(statistics["objects_by_depth"]) == sum(len(a["boxes"]) for a in found)
    assert statistics["latent_count"] == sum(a["latent"][0].size for a in found)
    np.testing.assert_allclose(statistics["latent_sum"], sum(floats(a["latent"]).sum((1, 2)) for a in found), atol=2)
    np.testing.assert_allclose(statistics["dino_sum"], sum(a["dino"].astype(float).sum(0) for a in found), atol=1e-6)
    assert statistics["dropped_objects"] == 0


def test_a_sample_at_full_size_takes_the_bytes_of_the_plan(tmp_path):
    """§3.3: 4.79 MB for 1024 x 1024 pixels, 18 objects, without a picture; 210 samples to a shard of 1 GB."""
    schema = movie_post_production_schema(object_text=False, image=False)
    sizes = {"h": 128, "w": 128, "L": 512, "N": 18}
    dtypes = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32, "u8": np.uint8}
    arrays = {f.name: np.zeros([sizes.get(dim, dim) for dim in f.shape], dtypes[f.dtype]) for f in schema.fields}
    meta = {
        "caption": "c" * 400,
        "objects": [{"caption": "o" * 120, "category": "thing", "object_id": i} for i in range(18)],
    }
    with ShardWriter(tmp_path, schema) as writer:
        writer.add("a", arrays, meta)
    index = json.loads(index_path(tmp_path / writer.shards[0]["name"]).read_text())
    found = {name.partition(".")[0]: place[1] for name, place in index["samples"][0]["members"].items()}
    expected = {"latent": 524_288, "t5": 4_194_304, "pooled": 1_536, "clip": 27_648, "dino": 36_864}
    assert {name: found[name] - 128 for name in expected} == expected, "128 bytes are the header of a .npy file"
    assert found["json"] < 6_000
    assert sum(found.values()) == pytest.approx(4.79e6, rel=0.002)
    assert 200 < 1e9 / writer.shards[0]["bytes"] < 215


def test_a_part_makes_about_one_shard(synthetic, options):
    job = MovieJob(synthetic, options(sizes=((1024, 1024),), text_length=512))
    assert job.part_items == 10**9 // (2 * (16 * 128 * 128 + 512 * 24 + 20 + 18 * (12 + 16 + 20)))


def test_pictures_are_cropped_to_the_size_of_their_shape(raw, edit, options, tmp_path):
    """A picture of 64 x 96 for a size of 64 x 64 loses a sixth on either side, and what stood there."""
    edit(
        raw,
        2,
        lambda e: e["objects"].append(
            {
                "object_id": 90,
                "category_name": "edge",
                "caption": "",
                "bbox": [0.0, 0.2, 0.1, 0.9],
                "depth_label": "midground",
            }
        ),
    )
    samples = make(raw, tmp_path / "out", options(sizes=((64, 64),), preview=32))
    sample = samples["scene_00002"]
    assert sample.arrays["latent"].shape == (16, 8, 8)
    assert sample.arrays["image"].shape == (32, 32, 3)
    assert sample.meta["crop"] == pytest.approx([1 / 6, 0, 5 / 6, 1])
    assert {"object_id": 90, "reason": "cropped"} in sample.meta["dropped"]
    kept = {o["object_id"] for o in sample.meta["objects"]}
    raw_objects = {o.object_id: o.box for o in read_captions(raw)[0][2].objects if o.object_id in kept}
    for box, (x1, y1, x2, y2) in zip(sample.arrays["boxes"], raw_objects.values(), strict=True):
        expected = [min(max((x - 1 / 6) * 1.5, 0), 1) for x in (x1, x2)]
        assert box.tolist() == pytest.approx([expected[0], y1, expected[1], y2], abs=1e-6)


def test_the_largest_objects_are_kept_in_the_order_of_the_file(synthetic, options, tmp_path):
    samples = make(synthetic, tmp_path / "out", options(max_objects=2, preview=0))
    for picture in read_captions(synthetic)[0]:
        areas = {o.object_id: (o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) for o in picture.objects}
        sample = samples[picture.key]
        kept = [o["object_id"] for o in sample.meta["objects"]]
        assert len(kept) == 2
        assert kept == [o.object_id for o in picture.objects if o.object_id in kept]
        dropped = {o["object_id"]: o["reason"] for o in sample.meta["dropped"]}
        assert set(dropped) == set(areas) - set(kept)
        assert set(dropped.values()) <= {"beyond the largest"}
        assert min(areas[k] for k in kept) >= max((areas[d] for d in dropped), default=0)
        assert "image" not in sample.arrays


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("latents", "latents/vae_full_images/scene_00001.pt"),
        ("text", "latents/text_embeddings/scene_00001.pt"),
        ("clip", "embedding/clip_cropped_boxes/scene_00001_obj1.npy"),
        ("dino", "embedding/dino_cropped_boxes/scene_00001_obj1.npy"),
    ],
)
def test_a_missing_file_is_a_skipped_sample_never_zeros(raw, samples, encoders, options, tmp_path, what, file):
    """Regression D22."""
    write_precomputed(raw, samples, encoders, "flux")
    (raw / file).unlink()
    own = {"clip": {"clip": None, "clip_dim": 12}, "dino": {"dino": None, "dino_dim": 16}}.get(what, {})
    chosen = options(precomputed=(what,), **own)
    with pytest.raises(RawError, match=f"{file}: missing, expected .*; make it, or compute it by leaving it out"):
        make(raw, tmp_path / "out", chosen)
    found = make(raw, tmp_path / "out", chosen, skip_bad=True)
    assert set(samples) - set(found) == {"scene_00001"}
    (listed,) = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert file in listed["reason"]
    assert all(np.abs(s.arrays["clip"].astype(float)).sum(1).min() > 0.5 for s in found.values())


def test_a_damaged_picture_and_bad_captions_are_skipped_and_listed(raw, edit, options, tmp_path):
    (raw / "images/scene_00000.png").write_bytes(b"nothing")
    edit(raw, 2, lambda e: e["objects"][1].update(bbox=[0, 0, 0, 0]))
    found = make(raw, tmp_path / "out", options(), skip_bad=True)
    lines = (tmp_path / "out/skipped.jsonl").read_text()
    # Of the first two, one cannot be read and the other has its reference there; the same for the next two.
    assert set(found) == {f"scene_{n:05d}" for n in (4, 5, 6, 7)}
    assert "not readable as a picture" in lines
    assert "an empty box" in lines
    assert "refers to object 0 of image 'scene_00002'" in lines


def test_a_picture_whose_objects_are_all_cropped_is_named(raw, edit, options, tmp_path):
    edit(raw, 2, lambda e: e.update(objects=[{"object_id": 0, "caption": "edge", "bbox": [0.0, 0.2, 0.1, 0.9]}]))
    with pytest.raises(RawError, match=r"scene_00002\.json: none of its 1 objects is in the crop to 64 x 64"):
        make(raw, tmp_path / "out", options(sizes=((64, 64),)))


def test_a_picture_without_objects_is_a_sample_like_others(raw, edit, samples, encoders, options, tmp_path):
    """Computed and read: no boxes, no vectors, the fields all there, and one batch with others."""
    write_precomputed(raw, samples, encoders, "flux")
    chosen = (options(), options(precomputed=PRECOMPUTED, clip=None, dino=None, clip_dim=12, dino_dim=16))
    for number in range(PICTURES):
        edit(raw, number, lambda e: e.update(objects=[] if e["image_id"] != "scene_00000" else e["objects"][1:]))
    for which, given in enumerate(chosen):
        found = make(raw, tmp_path / str(which), given, holdout=0.0)
        bare, other = found["scene_00001"], found["scene_00000"]
        assert set(bare.arrays) == set(other.arrays)
        assert [bare.arrays[name].shape for name in ("boxes", "depth", "clip", "dino")] == [
            (0, 4),
            (0,),
            (0, 12),
            (0, 16),
        ]
        assert bare.meta["objects"] == []
        torch.testing.assert_close(floats(bare.arrays["latent"]), floats(samples["scene_00001"].arrays["latent"]))
        batch = collate(SCHEMA, [bare, found["scene_00004"]])
        assert batch["boxes"].shape == (2, 0, 4)
        assert valid_objects(collate(SCHEMA, [bare, other])["boxes"]).sum(1).tolist() == [0, len(other.arrays["boxes"])]
        statistics = ShardSet.open(tmp_path / str(which) / "train", SCHEMA).statistics
        assert sum(statistics["objects_by_depth"]) == len(other.arrays["boxes"])


def splits_of(raw, options) -> dict[str, str | None]:
    return {item.key: item.split for item in MovieJob(raw, options).items()[0]}


def test_the_guides_split_is_there_on_demand(raw, edit, options):
    assert set(splits_of(raw, options()).values()) == {None}, "left to the builder, which goes by a hash of the key"
    found = splits_of(raw, options(seed_split=True))
    assert [found[f"scene_{n:05d}"] for n in range(PICTURES)] == ["train"] * 7 + ["val"]


def test_pictures_kept_for_evaluation_never_train(raw, edit, options, tmp_path):
    """Regression D24: what the raw data holds out stays held out, in any split by name."""
    edit(raw, 0, lambda e: e.update(split="val"))
    assert splits_of(raw, options(seed_split=True))["scene_00000"] == "val"
    make(raw, tmp_path / "out", options(), holdout=0.0)
    assert [ShardSet.open(tmp_path / "out" / split, SCHEMA).name(0)[1] for split in ("val",)] == ["scene_00000"]


def test_settings_tell_of_all_that_samples_depend_on(raw, edit, options, encoders):
    first = MovieJob(raw, options()).settings()
    assert json.loads(json.dumps(first)) is not None
    assert MovieJob(raw, options()).settings() == first
    for other in (options(text_length=64), options(max_objects=3), options(sizes=((64, 64),)), options(preview=0)):
        assert MovieJob(raw, other).settings() != first
    edit(raw, 5, lambda e: e["objects"][0].update(caption="something else"))
    assert MovieJob(raw, options()).settings() != first
    assert MovieJob(raw, options(dino=encoders / "dino")).settings()["encoders"] == first["encoders"]


def test_a_job_can_be_sent_to_a_worker(synthetic, options):
    job = pickle.loads(pickle.dumps(MovieJob(synthetic, options())))
    item = job.items()[0][0]
    job.check(item)
    job.start()
    (sample,) = job.encode([item], [job.prepare(item)])
    assert set(sample.arrays) == {f.name for f in job.schema.fields}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": None}, "no folder of the clip encoder is given, expected --clip DIR or 'clip' among"),
        ({"precomputed": ("depth",)}, r"precomputed \['depth'\] found"),
        ({"sizes": ()}, "no size is given"),
        ({"text_length": 0}, "text_length 0 found, expected at least 1"),
        ({"preview": -1}, "preview -1 found"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_an_encoder_that_is_not_there_is_named_before_anything_is_read(tmp_path, encoders):
    given = BuildOptions(tmp_path / "flux", encoders / "image_encoder", encoders / "dino", ((64, 64),))
    with pytest.raises(EncoderError, match="vae: no such folder"):
        MovieJob(tmp_path, given)


def test_a_picture_of_a_sample_shows_boxes_and_says_what_they_are(samples):
    family = builder("movie_post_production")
    sample = samples["scene_00001"]
    picture = family.picture(sample)
    assert picture.shape[0] == 320
    x1, y1, *_ = (sample.arrays["boxes"][1] * 320).round().astype(int)
    colour = [(214, 40, 40), (232, 150, 20), (40, 90, 220)][sample.arrays["depth"][1]]
    edge = picture[y1 + 20, max(x1 - 1, 0) : x1 + 3]
    assert (edge == colour).all(-1).any()
    assert (picture[:, 330:] < 128).any(), "words next to it"
    del sample.arrays["image"]
    assert family.picture(sample).shape == picture.shape


def test_every_raw_file_but_the_lists_belongs_to_an_item(raw, samples, encoders, options):
    write_precomputed(raw, samples, encoders, "flux")
    job = MovieJob(raw, options(precomputed=PRECOMPUTED, clip=None, dino=None))
    assert files_of_no_item(raw, job) == {"synthetic.json"}
