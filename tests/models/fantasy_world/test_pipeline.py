"""The pipeline against diffusers' own on the base, and what users rely on: callbacks, offload, saving, refusals."""

import math
import re

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v
from PIL import Image

from stagecoach import FantasyWorldPipeline
from stagecoach.data.encoding.image_encoders import ImageEncoder
from stagecoach.data.encoding.text_encoders import clean_prompt
from stagecoach.data.encoding.tiny_encoders import write_wan_encoders
from stagecoach.data.fantasy_world.cameras import encode_pose
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.outputs.point_cloud import read_ply
from stagecoach.models.common.keyed import keyed_randn, request_generators
from stagecoach.models.common.noise import FlowMatching
from stagecoach.models.family import Progress
from stagecoach.models.fantasy_world.config import SIZES
from stagecoach.models.fantasy_world.preview import preview
from tests.models.fantasy_world.conftest import with_base
from tests.models.fantasy_world.fakes import make_batch
from tests.models.fantasy_world.inputs import make_inputs, open_gates
from tests.tiny_data import ROOT

PROMPTS, NEGATIVE = ["a red ball on a table", "two blue boxes"], "blurred"
STEPS = 3
MIRRORED = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def image_to_video():
    """The tiny size with a picture: CLIP states of 64 numbers, text of 512 tokens."""
    tiny = SIZES["tiny"]
    backbone = tiny.backbone.model_copy(update={"in_channels": 36, "image_dim": 64, "text_length": 512})
    return tiny.model_copy(update={"backbone": backbone})


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "encoders"
    frames = np.random.default_rng(1).integers(0, 256, (6, 64, 96, 3), np.uint8)
    write_wan_encoders(folder, frames, [*PROMPTS, NEGATIVE], 0)
    return folder


@pytest.fixture(scope="module", params=["text", "image"])
def sized(request, tiny, tmp_path_factory):
    """A text-to-video and an image-to-video size, each with a saved base."""
    if request.param == "text":
        return tiny
    config, folder = image_to_video(), tmp_path_factory.mktemp("i2v")
    with torch.random.fork_rng():
        torch.manual_seed(6)
        WanTransformer3DModel(**config.backbone.diffusers()).save_pretrained(folder)
    return with_base(config, folder)


def make_pipeline(network, encoders, image=False):
    components = {name: encoders / name for name in ("vae", "text_encoder", "tokenizer")}
    pipeline = FantasyWorldPipeline.from_network(
        network, **components, image_encoder=encoders / "image_encoder" if image else None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(tiny, make_network, encoders):
    network = make_network(tiny, 2)
    open_gates(network)
    return make_pipeline(network, encoders)


class PublishedLevels(FlowMatchEulerDiscreteScheduler):
    """diffusers' Euler over the levels of the published loop."""

    def set_timesteps(self, steps, device=None):
        super().set_timesteps(sigmas=FlowMatching(5.0).sigmas(steps).double().numpy(), device=device)


def test_an_identity_adapter_gives_the_video_of_the_pipeline_of_diffusers(
    sized, make_network, encoders, monkeypatch, tmp_path
):
    for module in (pipeline_wan, pipeline_wan_i2v):  # theirs needs ftfy, which has nothing to mend here
        monkeypatch.setattr(module, "prompt_clean", clean_prompt)
    ours = make_pipeline(make_network(sized, 2), encoders, sized.image_to_video)
    parts = {name: getattr(ours, name) for name in ("vae", "text_encoder", "tokenizer")}
    kind, picture, prompts = WanPipeline, {}, PROMPTS
    if sized.image_to_video:
        kind, picture, prompts = WanImageToVideoPipeline, {"image": Image.fromarray(PICTURE)}, PROMPTS[:1]
        parts |= {"image_encoder": ours.image_encoder, "image_processor": ours.image_processor}
    theirs = kind(transformer=WanTransformer3DModel.from_pretrained(sized.base), scheduler=PublishedLevels(), **parts)
    theirs.set_progress_bar_config(disable=True)
    inputs = make_inputs(sized, 1)
    cameras = {name: inputs[name][0] for name in ("extrinsics", "intrinsics")}
    request = {
        "prompt": prompts,
        "negative_prompt": [NEGATIVE] * len(prompts),
        "height": 64,
        "width": 96,
        "num_frames": 9,
        "num_inference_steps": STEPS,
        "max_sequence_length": sized.backbone.text_length,
        **picture,
    }
    if sized.image_to_video:
        # diffusers cuts CLIP's square out of the middle, Wan2.1's own code takes all of it (tests/data/encoding).
        states = ImageEncoder(encoders / "image_encoder", torch.device("cpu")).encode([PICTURE])
        monkeypatch.setattr(theirs, "encode_image", lambda image, device: states)
    expected = theirs(**request, generator=request_generators(0, "parity", range(len(prompts)))).frames
    for layout in ("sequential", "together"):
        generators = request_generators(0, "parity", range(len(prompts)))
        found = ours(
            **request,
            cameras=cameras["extrinsics"],
            intrinsics=cameras["intrinsics"],
            generator=generators,
            cfg_batch=layout,
        )
        assert found.frames.shape == (len(prompts), 9, 64, 96, 3)
        assert np.abs(found.frames - expected).max() < 1e-5
    assert expected.std() > 0.02
    assert found.sigma_read == pytest.approx(FlowMatching(5.0).sigmas(STEPS)[-1].item(), abs=1e-6)
    assert found.depth.shape == (len(prompts), 9, 64, 96)
    assert found.points.shape == (len(prompts), 9, 64, 96, 3)
    assert found.extrinsics.shape == (len(prompts), 9, 3, 4)
    assert found.intrinsics.shape == (len(prompts), 9, 4)
    ours.save_pretrained(tmp_path)
    opened = FantasyWorldPipeline.from_pretrained(tmp_path, local_files_only=True)
    opened.set_progress_bar_config(disable=True)
    again = opened(**request, generator=request_generators(0, "parity", range(len(prompts)))).frames
    assert np.abs(again - expected).max() < 1e-5


SHORT = {"prompt": PROMPTS[0], "num_inference_steps": 2, "output_type": "latent"}


def given_camera(pipeline, index=0):
    inputs = make_inputs(pipeline.transformer.network.config, 2)
    return {"cameras": inputs["extrinsics"][index], "intrinsics": inputs["intrinsics"][index]}


def test_a_sample_depends_on_its_generator_and_not_on_its_batch_or_the_number_per_prompt(pipeline):
    camera = given_camera(pipeline)
    both = pipeline(**SHORT | {"prompt": PROMPTS}, **camera, generator=request_generators(1, "a", range(2)))
    alone = pipeline(**SHORT | {"prompt": PROMPTS[1]}, **camera, generator=request_generators(1, "a", [1]))
    several = pipeline(
        **SHORT | {"prompt": PROMPTS[1]},
        **camera,
        num_videos_per_prompt=2,
        generator=request_generators(1, "a", [0, 1]),
    )
    for found in (both, several):
        torch.testing.assert_close(found.frames[1:], alone.frames, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.points[1:], alone.points, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(both.frames[0], several.frames[0], atol=1e-2)


def test_camera_and_negative_prompt_lead_the_video(pipeline):
    def draw(**more):
        return pipeline(**SHORT, **more, geometry=False, generator=request_generators(1, "b", [0])).frames

    base = draw(**given_camera(pipeline))
    for more in ({}, given_camera(pipeline, 1), given_camera(pipeline) | {"negative_prompt": NEGATIVE}):
        assert not torch.allclose(draw(**more), base, atol=1e-3)
    turned = given_camera(pipeline)
    quarter = torch.tensor([[0.0, 0, 1, 2], [0, 1, 0, 3], [-1, 0, 0, 4], [0, 0, 0, 1]])
    whole = torch.cat([turned["cameras"], torch.tensor([0.0, 0, 0, 1]).expand(9, 1, 4)], 1)
    moved = draw(cameras=whole @ quarter, intrinsics=turned["intrinsics"])  # the same path in another world
    torch.testing.assert_close(moved, base, atol=1e-4, rtol=1e-4)


def test_a_callback_is_called_after_each_step_and_what_it_returns_goes_on(pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((pipe is pipeline, step, round(float(timestep)), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = ["latents", "prompt_embeds"]
    found = pipeline(**SHORT, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert seen == [(True, 0, 1000, names), (True, 1, 833, names)]
    assert not found.frames.any()


def test_models_move_in_and_out_by_hooks_that_see_every_pass(tiny, make_network, encoders):
    pipe = make_pipeline(make_network(tiny, 2), encoders)
    plain = pipe(**SHORT | {"output_type": "np"}, generator=request_generators(1, "c", [0]))
    pipe.enable_model_cpu_offload(device="cpu")
    calls = []
    for name in ("text_encoder", "transformer", "vae"):
        hook = getattr(pipe, name)._hf_hook
        before = hook.pre_forward
        hook.pre_forward = lambda *a, n=name, f=before, **k: (calls.append(n), f(*a, **k))[1]
    found = pipe(**SHORT | {"output_type": "np"}, generator=request_generators(1, "c", [0]))
    assert calls == ["text_encoder", *["transformer"] * 4, "vae"]
    assert np.array_equal(found.frames, plain.frames)


def test_a_saved_pipeline_is_opened_with_the_same_weights_and_gives_the_same_video(pipeline, tmp_path):
    request = SHORT | given_camera(pipeline)
    expected = pipeline(**request, generator=request_generators(1, "d", [0]))
    pipeline.save_pretrained(tmp_path)
    opened = FantasyWorldPipeline.from_pretrained(tmp_path, local_files_only=True)
    opened.set_progress_bar_config(disable=True)
    found = opened(**request, generator=request_generators(1, "d", [0]))
    assert torch.equal(found.frames, expected.frames)
    assert torch.equal(found.depth, expected.depth)
    half = FantasyWorldPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16, local_files_only=True)
    half.set_progress_bar_config(disable=True)
    assert half.transformer.dtype == torch.bfloat16
    kept = {p.dtype for n, p in half.transformer.named_parameters() if n.endswith("time_embedder.linear_1.weight")}
    assert kept == {torch.float32}
    near = half(**request, generator=request_generators(1, "d", [0]))
    assert (near.frames - expected.frames).abs().mean() < 0.05 * expected.frames.abs().mean()
    with pytest.raises(ValueError, match=r"in torch.float32 cannot be cast to torch.float16, .*from_adapter"):
        opened.to(torch.float16)
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"transformer: no .safetensors file found"):
        FantasyWorldPipeline.from_pretrained(tmp_path, local_files_only=True)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_preview_shows_what_the_pipeline_reads_of_the_same_video_and_noise(tiny, make_network, encoders, stage):
    pipe, batch = make_pipeline(make_network(tiny, stage), encoders), make_batch(2)
    found = pipe.read_geometry(
        None,
        prompt_embeds=batch["text"],
        latents=batch["latent"],
        noise=keyed_randn(batch, "val_noise", batch["latent"].shape[1:]),
        output_type="latent",
    )
    assert found.sigma_read == pytest.approx(0.092593, abs=1e-6)
    shown = preview(pipe.transformer.network, batch, Progress(0, 1, stage, 0, training=False))

    class Answer(torch.nn.Module):
        config = tiny

        def predict(self, *inputs, frames, **named):
            poses = torch.cat([pose_encoding(found)], -1)
            picked = [0, found.depth.shape[1] - 1]
            dense = {n: found[n][:, picked] for n in ("depth", "depth_confidence", "points", "points_confidence")}
            return dense | {"poses": [poses]}

    again = preview(Answer(), batch, Progress(0, 1, stage, 0, training=False))
    for key in batch["key"]:
        assert np.abs(shown[key].astype(int) - again[key]).max() <= 1


def pose_encoding(found):
    return encode_pose(found.extrinsics, found.intrinsics, 64, 96)


def test_a_silent_exchange_reads_the_geometry_of_stage_one_next_to_the_video_of_the_base(tiny, make_network, encoders):
    first, second = (make_pipeline(make_network(tiny, stage), encoders) for stage in (1, 2))
    frames = np.random.default_rng(2).integers(0, 256, (9, 64, 96, 3), np.uint8)
    read = [
        pipe.read_geometry(frames, PROMPTS[0], **given_camera(pipe), generator=request_generators(1, "e", [0]))
        for pipe in (first, second)
    ]
    torch.testing.assert_close(read[0].depth, read[1].depth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read[0].extrinsics, read[1].extrinsics, atol=1e-5, rtol=1e-5)
    assert np.abs(read[0].frames[0] - frames / 255).max() < 1e-6
    with pytest.raises(ValueError, match=r"stage 1, which has no video blocks .* read_geometry"):
        first(**SHORT)


def test_the_example_of_the_docs_goes_from_an_adapter_to_files(pipeline, tmp_path, monkeypatch):
    text, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sampling.md").read_text(), re.DOTALL)
    small = text.replace("81, 336, 592, 16", "9, 64, 96, 16")
    assert small != text
    monkeypatch.setattr(FantasyWorldPipeline, "from_adapter", lambda *given, **named: pipeline)
    monkeypatch.chdir(tmp_path)
    exec(small, dict.fromkeys(("adapter", "base", "vae", "text_encoder", "tokenizer")))
    assert sum(1 for _ in read_frames(tmp_path / "video.mp4")) == 9
    assert sum(1 for _ in read_frames(tmp_path / "depth.mp4")) == 9
    assert len(read_ply(tmp_path / "points.ply").points) > 100


def test_what_cannot_be_drawn_is_refused_by_a_sentence(pipeline):
    camera = given_camera(pipeline)
    for change, message in (
        ({"num_frames": 10}, r"10 frames .* take 9 or 13"),
        ({"height": 100}, r"height is 100, expected a multiple of 16 pixels, such as 96"),
        ({"image": PICTURE}, r"text-to-video and takes none"),
        ({"cameras": camera["cameras"]}, r"without intrinsics"),
        (camera | {"num_frames": 5}, r"cameras have shape \[9, 3, 4\], expected \[5, 3, 4\]"),
        (camera | {"cameras": 2 * camera["cameras"]}, r"camera of frame 0 is no rotation .* off by 3"),
        (camera | {"cameras": MIRRORED @ camera["cameras"]}, r"cameras mirror the scene"),
        (camera | {"cameras": camera["cameras"] * math.nan}, r"no finite number"),
        ({"output_type": "video"}, r"output_type is 'video', expected one of pil, np"),
        ({"prompt": None}, r"give either prompt or prompt_embeds, not neither"),
        ({"cfg_batch": "both"}, r"cfg_batch is 'both'"),
        ({"scheduler": "DDIMScheduler"}, r"does not sample FlowMatching"),
        ({"generator": request_generators(0, "f", range(3))}, r"3 generators given for 1 samples"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"\['noise'\], expected some of"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**SHORT | change)
