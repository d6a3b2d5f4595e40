"""The pipeline from a song and a photo to a video: previews show what it draws, and what users rely on."""

import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from stagecoach import DanceWithMusicPipeline
from stagecoach.data.dance_with_music.poses import read_poses
from stagecoach.models.common.keyed import keyed_randn, request_generators
from stagecoach.models.dance_with_music.base import fill_base
from stagecoach.models.dance_with_music.clip import read_references
from stagecoach.models.dance_with_music.conditions import make_conditions, predict_poses, read_batch
from stagecoach.models.dance_with_music.config import SIZES, DanceConfig
from stagecoach.models.dance_with_music.music_to_pose.dance import predict_dance
from stagecoach.models.dance_with_music.network import build_network
from stagecoach.models.dance_with_music.sampler import draw
from stagecoach.models.family import Progress
from tests.models.dance_with_music.champ_inputs import make_conditions as random_conditions
from tests.models.dance_with_music.champ_inputs import open_zeros
from tests.models.test_devices import _to_meta
from tests.models.weights.held import hold
from tests.tiny_dance import make_network

ROOT = Path(__file__).resolve().parents[3]
STEPS = 2
FRAMES = 26
SECOND_ORDER = "DPMSolverMultistepScheduler"


def sized(size: str, **changes) -> DanceConfig:
    values = SIZES[size].model_dump()
    for part, own in changes.items():
        values[part] = values[part] | own if isinstance(own, dict) else own
    return DanceConfig.model_validate(values)


def make_pipeline(dance, config, stage=3, **more):
    paths = {"image_encoder": dance.encoders / "image_encoder", "arcface": dance.encoders / "arcface.onnx"}
    network = open_zeros(make_network(config, stage))
    pipe = DanceWithMusicPipeline.from_network(network, dance.encoders / "vae", **paths, clip_resize="crop", **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["tiny", "tiny-svd"])
def pipeline(request, dance):
    return make_pipeline(dance, sized(request.param))


@pytest.fixture(scope="module")
def champ(dance):
    return make_pipeline(dance, sized("tiny"))


@pytest.fixture(scope="module")
def asked(dance):
    """A photo, where the face is in it, and music."""
    raw = dance.shards.parent / "raw"
    image = Image.open(raw / "reference_images" / "dance_00000.png")
    xy, conf = read_poses(raw / "reference_images" / "dance_00000.json", np.zeros(1, np.int64))
    music = torch.randn(FRAMES, 35, generator=torch.Generator().manual_seed(4))
    return {"image": image, "image_pose": np.concatenate([xy, conf[..., None]], -1)[0], "music": music}


def danced(pipe, asked, sample=0, request="a", **more):
    given = {**asked, "num_inference_steps": STEPS, "output_type": "latent"} | more
    return pipe(**given, generator=request_generators(1, request, [sample])).frames


@pytest.mark.parametrize(("size", "stage"), [("tiny", 2), ("tiny", 3), ("tiny-svd", 2), ("tiny-svd", 3)])
def test_a_preview_shows_what_the_pipeline_draws_for_the_same_noise(dance, size, stage):
    config = sized(size)
    pipe = make_pipeline(dance, config, stage)
    network, batch = pipe.transformer.network, dance.batch(config, stage, 1)
    progress, inputs = Progress(10, 10, stage, 0, training=False), read_batch(pipe.transformer.network, batch)
    inputs = replace(inputs, frames=None, target=inputs.clip)
    conditions = make_conditions(network, batch, inputs, predict_poses(network, batch, inputs, progress), progress)
    noise = keyed_randn(batch, "preview_noise", inputs.clip.latents.shape[1:])
    shown = draw(network, noise, conditions)
    references = read_references(batch, config)
    found = pipe(
        image_latents=references.latents[0],
        image_embeds=references.embedding[0],
        face_embeds=references.face[0] * references.length[0],
        image_pose=inputs.clip.start_pose[0],
        music=batch["music"][0],
        latents=noise,
        num_inference_steps=config.sampling.steps,
        output_type="latent",
    )
    assert torch.equal(found.frames, shown)
    assert found.pose.shape == (noise.shape[1], 134, 3)
    true = pipe(
        image_latents=references.latents[0],
        image_embeds=references.embedding[0],
        face_embeds=references.face[0] * references.length[0],
        pose=torch.cat([inputs.clip.xy, inputs.clip.conf[..., None]], -1)[0],
        latents=noise,
        num_inference_steps=config.sampling.steps,
        output_type="latent",
    )
    assert not torch.allclose(true.frames, shown, atol=1e-3)


def test_a_photo_is_encoded_as_the_builder_encoded_it(champ, dance, asked):
    data = dance.samples(champ.transformer.network.config)
    stored = next(s for s in (data.read(i) for i in range(len(data))) if s.key == "dance_00000").arrays
    found = champ.encode_photos(asked["image"], asked["image_pose"])
    assert stored["ref_frame"][0] == -1
    torch.testing.assert_close(
        found["references"][0, 0], torch.tensor(stored["ref_latents"][0]).float(), atol=4e-3, rtol=0
    )
    torch.testing.assert_close(found["embedding"][0, 0], torch.tensor(stored["ref_clip"][0]).float(), atol=4e-3, rtol=0)
    face = torch.tensor(stored["ref_arcface"][0] * stored["ref_arcface_norm"][0])
    torch.testing.assert_close(found["face"][0], face, atol=1e-3, rtol=1e-3)
    assert found["face_given"].all()
    assert not champ.encode_photos(asked["image"])["face_given"].any()


def test_a_photos_noise_is_on_its_pixels_as_published_where_the_network_was_trained_so(dance, asked):
    """StableAnimator's and Stable Video Diffusion's pipelines: the first draw of the generator, times 0.02, on the
    photo in -1..1 before the VAE; the video's noise is the next draw."""
    pipe = make_pipeline(dance, sized("tiny-svd", diffusion={"reference_noise_on": "pixels"}))
    height, width = asked["image"].height, asked["image"].width
    seen = []
    sampled = pipe._conditions
    pipe._conditions = lambda *given: seen.append(sampled(*given)) or seen[-1]
    both = pipe(
        **asked,
        num_inference_steps=STEPS,
        output_type="latent",
        num_videos_per_prompt=2,
        generator=request_generators(1, "a", [0, 1]),
    ).frames
    drawn = request_generators(1, "a", [0, 1])
    for k, generator in enumerate(drawn):
        noise = torch.randn(1, 3, height, width, generator=generator)
        photo = VaeImageProcessor().preprocess(asked["image"], height=height, width=width) + 0.02 * noise
        with torch.no_grad():
            expected = pipe.vae.encode(photo).latent_dist.mode() * pipe.vae.config.scaling_factor
        torch.testing.assert_close(seen[0]["references"][k], expected, atol=1e-5, rtol=1e-4)
    alone = danced(pipe, asked, 1)
    torch.testing.assert_close(alone[0], both[1], atol=5e-4, rtol=1e-3)
    torch.testing.assert_close(seen[1]["references"][0], seen[0]["references"][1], atol=1e-5, rtol=1e-4)
    video = torch.stack([torch.randn(both.shape[1:], generator=generator) for generator in drawn])
    rest = {"num_inference_steps": STEPS, "output_type": "latent", "num_videos_per_prompt": 2, "latents": video}
    again = pipe(**asked, **rest, generator=request_generators(1, "a", [0, 1])).frames
    torch.testing.assert_close(again, both, atol=5e-4, rtol=1e-3)
    given = pipe(**asked, **rest, image_latents=seen[0]["references"][0]).frames
    torch.testing.assert_close(given[0], both[0], atol=5e-4, rtol=1e-3)  # latents are taken as they are


def test_what_conditions_a_call_is_made_once_and_each_frame_is_encoded_once(dance, asked):
    pipe = make_pipeline(dance, sized("tiny", guidance={"chunk": 8}))
    network, calls = pipe.transformer.network, []
    parts = {"face": network.face_tokens, "reference": network.reference_unet, "unet": network.denoising_unet}
    parts |= {"guidance": network.guidance.encoders["pose"], "m2p": network.m2p}
    for name, part in parts.items():
        part.register_forward_hook(lambda module, given, out, name=name: calls.append((name, len(given[0]))))
    danced(pipe, asked)
    count = {name: [rows for what, rows in calls if what == name] for name in parts}
    assert count["face"] == count["reference"] == count["m2p"] == [1]
    assert count["guidance"] == [8, 8, 8, 2], "frames"
    # Of 6 frames that share 2: from 0, 4, ..., 20, then from 0, 2, 6, ..., 18, 20.
    assert count["unet"] == [2] * (6 + 7)


def test_a_sample_depends_on_its_generator_and_not_on_its_batch_and_starts_as_a_longer_one(pipeline, asked):
    alone = danced(pipeline, asked)
    both = pipeline(
        **asked,
        num_inference_steps=STEPS,
        output_type="latent",
        num_videos_per_prompt=2,
        generator=request_generators(1, "a", [1, 0]),
    ).frames
    torch.testing.assert_close(both[1], alone[0], atol=5e-4, rtol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.1
    torch.testing.assert_close(danced(pipeline, asked, cfg_batch="sequential"), alone, atol=5e-4, rtol=1e-4)
    short, long = (
        pipeline.make_noise((1, frames, 4, 8, 8), request_generators(1, "a", [0]), None) for frames in (9, FRAMES)
    )
    assert torch.equal(short, long[:, :9])


def test_photo_face_pose_music_guidance_windows_and_scheduler_lead_the_video(pipeline, asked):
    base = danced(pipeline, asked)
    pose = torch.rand(FRAMES, 134, 3, generator=torch.Generator().manual_seed(0))

    for more in (
        {"image": asked["image"].rotate(90)},
        {"image_pose": None},
        {"music": asked["music"].flip(0)},
        {"pose": pose},
        {"guidance_scale": 1.0},
        {"min_guidance_scale": 1.0},
        {"withhold_pose": True},
        {"context_length": 10},
        {"context_overlap": 4},
    ):
        assert not torch.allclose(danced(pipeline, asked, **more), base, atol=1e-3), more

    euler, other = (danced(pipeline, asked, num_inference_steps=4, scheduler=name) for name in (None, SECOND_ORDER))
    assert not torch.allclose(euler, other, atol=1e-3)
    same = danced(pipeline, asked, min_guidance_scale=pipeline.transformer.network.config.sampling.guidance_scale)
    torch.testing.assert_close(same, base, atol=1e-5, rtol=1e-5)


def test_frames_are_decoded_a_few_at_a_time_in_every_form(champ, asked):
    latents = danced(champ, asked)
    pixels = danced(champ, asked, output_type="np")
    assert pixels.shape == (1, FRAMES, 64, 64, 3)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    parts = list(champ.decoded(latents[0], 7))
    assert [len(part) for part in parts] == [7, 7, 7, 5]
    again = ((torch.cat(parts) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(again, pixels[0], atol=1e-5)
    tensors = danced(champ, asked, output_type="pt")
    assert tensors.shape == (1, FRAMES, 3, 64, 64)
    (pictures,) = danced(champ, asked, output_type="pil")
    assert len(pictures) == FRAMES


def test_models_move_in_and_out_by_hooks_that_see_every_pass(dance, asked):
    pipe = make_pipeline(dance, sized("tiny"))
    plain = danced(pipe, asked, output_type="np")
    pipe.enable_model_cpu_offload(device="cpu")
    calls = []
    for name in ("image_encoder", "transformer", "vae"):
        hook = getattr(pipe, name)._hf_hook
        before = hook.pre_forward
        hook.pre_forward = lambda module, *a, n=name, f=before, **k: (calls.append((n, *a[:1])), f(module, *a, **k))[1]
    found = danced(pipe, asked, output_type="np")
    names = [name for name, *_ in calls]
    methods = [given[0] for name, *given in calls if name == "transformer"]
    assert names[:2] == ["vae", "image_encoder"]
    assert methods == ["poses", "guide", "guide", "photo_features", *["predict"] * 13]
    assert names[-7:] == ["vae"] * 7, "4 frames at a time"
    assert np.array_equal(found, plain)


def test_a_callback_is_called_after_each_step_and_what_it_returns_goes_on(champ, asked):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((pipe is champ, step, list(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not danced(champ, asked, callback_on_step_end=callback).any()
    assert seen == [(True, k, ["latents"]) for k in range(STEPS)]


def test_a_saved_pipeline_is_opened_with_the_same_weights_and_gives_the_same_video(pipeline, asked, dance, tmp_path):
    listening = make_network(pipeline.transformer.network.config, 1)
    own = make_pipeline(dance, pipeline.transformer.network.config, music_to_pose=listening)
    own.save_pretrained(tmp_path)
    opened = DanceWithMusicPipeline.from_pretrained(tmp_path, local_files_only=True)
    opened.set_progress_bar_config(disable=True)
    assert opened.config.clip_resize == "crop"
    assert {name for name, part in opened.components.items() if part is None} == set()
    assert torch.equal(danced(opened, asked), danced(own, asked))
    (tmp_path / "face_encoder" / "arcface.onnx").unlink()
    with pytest.raises(ValueError, match=r"arcface.onnx: no such file"):
        DanceWithMusicPipeline.from_pretrained(tmp_path, local_files_only=True)


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_trained_weights_are_opened_in_each_form_with_a_music_to_pose_of_any_stage(size, dance, asked, tmp_path):
    held = hold(tmp_path / "run", "dance_with_music", size)
    first = tmp_path / "run" / "stage1" / "adapter"
    parts = {name: dance.encoders / name for name in ("vae", "image_encoder")} | {"clip_resize": "crop"}
    opened = DanceWithMusicPipeline.from_adapter(held.adapter, **parts)
    opened.set_progress_bar_config(disable=True)
    found = opened.transformer.network.state_dict()
    assert opened.transformer.network.stage == 3
    assert all(torch.equal(found[name], value) for name, value in held.tensors.items())
    average = DanceWithMusicPipeline.from_adapter(
        held.checkpoint, which="ema", predecessor=tmp_path / "run" / "stage2" / "adapter"
    )
    state = average.transformer.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in held.average.items())
    plain = danced(opened, asked)
    half = DanceWithMusicPipeline.from_adapter(held.adapter, **parts, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.transformer.dtype == torch.bfloat16
    # The same poses for both: rounded ones move lines of one pixel.
    posed = asked | {"pose": np.repeat(asked["image_pose"][None], FRAMES, 0)}
    right, near, other = danced(opened, posed), danced(half, posed), danced(opened, posed, request="b")
    assert 0 < (near - right).abs().mean() < 0.2 * (other - right).abs().mean()
    given = {}
    for source in (first, held.adapter):
        pipe = DanceWithMusicPipeline.from_adapter(held.adapter, **parts, music_to_pose=source)
        pipe.set_progress_bar_config(disable=True)
        assert {name for name, _ in pipe.music_to_pose.network.named_children()} == {"m2p"}
        given[source] = danced(pipe, asked)
    assert torch.equal(given[held.adapter], plain)
    assert not torch.allclose(given[first], plain, atol=1e-3)
    alone = DanceWithMusicPipeline.from_adapter(first, **parts)
    with pytest.raises(ValueError, match="this network is MusicToPose alone, expected one of a later stage"):
        danced(alone, asked)


def test_the_example_of_the_docs_goes_from_an_adapter_to_a_video(champ, dance, asked, tmp_path, monkeypatch):
    _, text = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sampling.md").read_text(), re.DOTALL)
    monkeypatch.setattr(DanceWithMusicPipeline, "from_adapter", lambda *given, **named: champ)
    monkeypatch.chdir(tmp_path)
    raw = dance.shards.parent / "raw"
    given = dict.fromkeys(("adapter", "vae", "image_encoder", "arcface")) | {"pose": asked["image_pose"]}
    given |= {"photo": raw / "reference_images" / "dance_00000.png", "song": raw / "videos" / "dance_00000.mp4"}
    exec(text, given)
    with av.open(str(tmp_path / "video.mp4")) as video:
        assert len(list(video.decode(video=0))) == given["track"].frames


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_windows_passes_and_poses_stay_on_the_device_of_the_noise(size):
    """On the meta device a tensor made elsewhere or a value asked of the device raises."""
    config = sized(size)
    network = build_network(config, 3, "cpu", torch.bfloat16)
    fill_base(network, config, "cpu")
    _to_meta(network)
    given = random_conditions(frames=11)
    if size == "tiny-svd":
        given["guidance"] = {"pose_net": torch.rand(2, 11, 3, 64, 64)}
    conditions = torch.utils._pytree.tree_map_only(torch.Tensor, lambda value: value.to("meta"), given)
    assert draw(network, torch.zeros(2, 11, 4, 8, 8, device="meta"), conditions).device.type == "meta"
    inputs = (torch.zeros(1, *shape, device="meta") for shape in ((50, 35), (config.unet.cross_dim,), (134, 3)))
    dance = predict_dance(network.poses, config.m2p, *inputs, 16)
    assert dance.points.device.type == "meta"
    assert dance.points.shape == (1, 50, 134, 3)


def test_what_cannot_be_danced_is_refused_by_a_sentence(champ, dance, asked):
    for change, message in (
        ({"height": 100}, r"height 100 found, expected a multiple of 64"),
        ({"image": None, "image_pose": None}, r"no image given, expected a photo of the dancer, or image_latents"),
        ({"music": None}, r"neither song nor music given"),
        ({"music": torch.zeros(9, 4800)}, r"music of 4800 numbers per frame given, expected 35"),
        ({"num_frames": 40}, r"26 rows of music given for a video of 40 frames"),
        ({"pose": np.zeros((4, 18, 3))}, r"a pose of shape \[4, 18, 3\] was given, expected finite numbers"),
        ({"pose": np.zeros((4, 134, 3)), "num_frames": 5}, r"poses of 4 frames given for a video of 5"),
        ({"context_length": 4, "context_overlap": 4}, r"windows of 4 frames that share 4"),
        ({"scheduler": "NoScheduler"}, r"scheduler 'NoScheduler' does not sample Ddpm"),
        ({"cfg_batch": "both"}, r"cfg_batch is 'both'"),
        ({"face_embeds": np.zeros(128)}, r"a face of 128 numbers was given, expected ArcFace's 512"),
        ({"image_embeds": torch.zeros(1, 8)}, r"embeddings \[1, 8\] given for 1 photos"),
        (
            {"latents": torch.zeros(1, 2, 4, 8, 8)},
            r"the noise has shape \[1, 2, 4, 8, 8\], expected \[1, 26, 4, 8, 8\]",
        ),
        ({"output_type": "gif"}, r"output_type is 'gif'"),
    ):
        with pytest.raises(ValueError, match=message):
            danced(champ, asked, **change)
    without = make_pipeline(dance, sized("tiny", plan="guidance"), 1)
    with pytest.raises(ValueError, match="no pose given, and the network has no MusicToPose"):
        danced(without, asked)
