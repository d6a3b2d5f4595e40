"""The pipeline against diffusers' FLUX on the base, and what users rely on: previews, callbacks, offload, saving."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image

from stagecoach import MoviePostPipeline
from stagecoach.data.movie_post_production.requests import read_request
from stagecoach.models.common.keyed import keyed_randn, request_generators
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.preview import draw, preview
from tests.models.weights.held import hold

PROMPTS, NEGATIVE = ["a red ball on a table", "two blue boxes"], "blurred"
LENGTH, STEPS = 32, 3
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
OBJECTS = [
    {"bbox": [0.1, 0.1, 0.6, 0.7], "category_name": "ball", "caption": "red", "reference": PICTURE},
    {"bbox": [0.5, 0.4, 1.0, 1.0], "caption": "a table", "depth_label": "background"},
]


@pytest.fixture(scope="module")
def based(config, tmp_path_factory):
    """``config`` on a saved FLUX."""
    folder = tmp_path_factory.mktemp("flux") / "transformer"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        FluxTransformer2DModel(**config.backbone.diffusers()).save_pretrained(folder)
    return config.model_copy(update={"base": str(folder), "allow_random_init": False})


@pytest.fixture(scope="module")
def make_pipeline(movie, based, make_network):
    def make(stage=3, moved=False, changed=None):
        components = {"image_encoder": movie.encoders / "image_encoder", "dino": movie.encoders / "dino"}
        network = make_network(stage, moved, changed or based)
        pipeline = MoviePostPipeline.from_network(network, movie.encoders, **components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture(scope="module")
def pipeline(make_pipeline):
    """All adapters away from their first values."""
    return make_pipeline(3, moved=True)


SHORT = {"prompt": PROMPTS[0], "num_inference_steps": STEPS, "max_sequence_length": LENGTH, "output_type": "latent"}


def painted(pipe, request="a", sample=0, **more):
    return pipe(**SHORT | {"objects": OBJECTS} | more, generator=request_generators(1, request, [sample])).images


def test_adapters_at_their_first_values_and_no_references_give_the_picture_of_flux(make_pipeline, pipeline, based):
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256
    )
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    base = FluxTransformer2DModel.from_pretrained(based.base)
    theirs = FluxPipeline(scheduler, transformer=base, **{name: getattr(pipeline, name) for name in names})
    theirs.set_progress_bar_config(disable=True)
    new = make_pipeline(3)
    for more in (
        {"guidance_scale": 3.5},
        {"sigmas": [1.0, 0.6, 0.3, 0.1], "num_images_per_prompt": 2},
        {"true_cfg_scale": 2.0, "negative_prompt": NEGATIVE, "width": 96},
    ):
        samples = range(len(PROMPTS) * more.get("num_images_per_prompt", 1))
        request = SHORT | {"prompt": PROMPTS, "output_type": "np", "height": 64, "width": 64} | more
        expected = theirs(**request, generator=request_generators(0, "parity", samples)).images
        assert expected.std() > 0.02
        for pipe, objects in ((pipeline, None), (pipeline, []), (new, None), (new, OBJECTS)):
            found = pipe(**request, objects=objects, generator=request_generators(0, "parity", samples)).images
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < 1e-5
    moved = pipeline(**request, objects=OBJECTS, generator=request_generators(0, "parity", samples)).images
    assert np.abs(moved - expected).max() > 1e-3


def test_noise_may_be_given_packed_as_that_of_flux(pipeline):
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = pipeline(**SHORT, latents=noise).images
    packed = pipeline(**SHORT, latents=FluxPipeline._pack_latents(noise, 1, 16, 8, 8)).images
    assert torch.equal(plain, packed)


@pytest.mark.parametrize(("stage", "part"), [(1, 1.0), (3, 0.5)])
def test_a_preview_shows_the_picture_of_the_pipeline_for_the_same_noise(
    make_pipeline, make_batch, progress, based, stage, part
):
    values = based.model_dump()
    values["sampling"]["layout_fraction"] = part
    pipe = make_pipeline(stage, True, MoviePostConfig.model_validate(values))
    batch, done = make_batch([0, 1], stage), progress(stage, 100, False)
    fields = {name: batch[name] for name in ("boxes", "depth", "clip", "dino", "object_text")}
    request = {
        "prompt_embeds": batch["t5"],
        "pooled_prompt_embeds": batch["pooled"],
        "object_embeds": fields,
        "latents": keyed_randn(batch, "preview_noise", batch["latent"].shape[1:]),
        "num_inference_steps": based.sampling.steps,
    }
    found = pipe(**request, output_type="latent")
    shown = draw(pipe.transformer.network, batch, done)
    assert torch.equal(found.images, shown.latents)
    assert torch.equal(found.alpha, shown.alpha)
    other = pipe(**request, layout_part=1.5 - part, output_type="latent")
    assert not torch.allclose(other.images, found.images, atol=1e-3)
    pictures = [np.asarray(picture) for picture in pipe(**request).images]
    for picture, sheet in zip(pictures, preview(pipe.transformer.network, batch, done).values(), strict=True):
        large = np.asarray(Image.fromarray(picture).resize((384, 384), Image.Resampling.BICUBIC)).astype(int)
        difference = np.abs(large - sheet[16 : 16 + 384, 384:768])
        assert np.median(difference) <= 1, "the rest is boxes"


def test_a_request_is_encoded_as_the_builder_encoded_the_sample(pipeline, movie, make_batch):
    batch = make_batch([0])
    request = read_request(movie.shards.parent / "raw" / "captions" / f"{batch['key'][0]}.json")
    found = pipeline.encode_objects(request.objects, 1)
    assert torch.equal(found["boxes"], batch["boxes"])
    assert torch.equal(found["depth"], batch["depth"])
    torch.testing.assert_close(found["object_text"], batch["object_text"].float(), atol=1e-2, rtol=1e-2)
    referred = [i for i, item in enumerate(request.objects) if item.reference is not None]
    assert referred
    for name in ("clip", "dino"):
        torch.testing.assert_close(found[name][0, referred], batch[name][0, referred].float(), atol=2e-3, rtol=0)
        missing = [i for i in range(len(request.objects)) if i not in referred]
        assert not found[name][0, missing].any()
    t5, pooled = pipeline.encode_prompt(request.caption, length=LENGTH)
    torch.testing.assert_close(t5, batch["t5"].float(), atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(pooled, batch["pooled"].float(), atol=2e-2, rtol=1e-2)


def test_a_sample_depends_on_its_generator_and_not_on_its_batch_or_on_more_objects_of_others(pipeline):
    groups = [OBJECTS[:1], OBJECTS]
    both = pipeline(**SHORT | {"prompt": PROMPTS}, objects=groups, generator=request_generators(1, "a", range(2)))
    generators = request_generators(1, "a", [3, 0])
    several = pipeline(**SHORT, objects=groups[0], num_images_per_prompt=2, generator=generators)
    alone = painted(pipeline, objects=groups[0])
    for found in (both.images[0], several.images[1]):
        torch.testing.assert_close(found, alone[0], atol=1e-4, rtol=1e-4)
    second = painted(pipeline, sample=1, prompt=PROMPTS[1])
    torch.testing.assert_close(both.images[1], second[0], atol=1e-4, rtol=1e-4)
    assert both.boxes.shape == (2, 2, 4)
    assert both.alpha.shape == (2, 2)


def test_objects_boxes_references_guidance_and_scheduler_lead_the_picture(pipeline):
    base = painted(pipeline)
    first, second = OBJECTS
    for more in (
        {"objects": None},
        {"objects": [first | {"bbox": [0.3, 0.2, 0.8, 0.8]}, second]},
        {"objects": [first | {"reference": PICTURE.rotate(90).point(lambda v: 255 - v)}, second]},
        {"objects": [first | {"reference": None}, second]},
        {"layout_part": 0.3},
        {"reference_guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"scheduler": "UniPCMultistepScheduler"},
        {"negative_prompt": NEGATIVE, "true_cfg_scale": 3.0},
    ):
        assert not torch.allclose(painted(pipeline, **more), base, atol=1e-3), more
    torch.testing.assert_close(painted(pipeline, reference_guidance_scale=1.0), base, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(painted(pipeline, negative_prompt=NEGATIVE), base, atol=0, rtol=0)
    without = painted(pipeline, objects=None)
    torch.testing.assert_close(painted(pipeline, reference_guidance_scale=0.0), without, atol=1e-4, rtol=1e-4)


def test_a_callback_is_called_after_each_step_and_what_it_returns_goes_on(pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((pipe is pipeline, step, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = ["latents", "prompt_embeds"]
    found = pipeline(**SHORT, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert seen == [(True, k, names) for k in range(STEPS)]
    assert not found.images.any()


def test_models_move_in_and_out_by_hooks_that_see_every_pass(make_pipeline):
    pipe = make_pipeline(2, moved=True)
    plain = painted(pipe, output_type="np")
    pipe.enable_model_cpu_offload(device="cpu")
    calls = []
    for name in ("text_encoder", "text_encoder_2", "image_encoder", "dino", "transformer", "vae"):
        hook = getattr(pipe, name)._hf_hook
        before = hook.pre_forward
        hook.pre_forward = lambda *a, n=name, f=before, **k: (calls.append(n), f(*a, **k))[1]
    found = painted(pipe, output_type="np")
    assert calls[:3] == ["text_encoder_2", "text_encoder", "image_encoder"]
    assert calls[3:] == ["dino", "text_encoder", *["transformer"] * STEPS, "vae"]
    assert np.array_equal(found, plain)
    # Also those that a call does not use leave the card before the steps.
    gone = []
    for hook in pipe._all_hooks:
        hook.offload = lambda model=hook.model, f=hook.offload: (gone.append(model), f())
    others = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    others.remove(pipe.transformer)

    def callback(*args):
        assert {id(model) for model in gone} == {id(model) for model in others}
        return {}

    pipe(**SHORT, callback_on_step_end=callback)


def test_a_saved_pipeline_is_opened_with_the_same_weights_and_gives_the_same_picture(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    opened = MoviePostPipeline.from_pretrained(tmp_path, local_files_only=True)
    opened.set_progress_bar_config(disable=True)
    assert torch.equal(painted(opened), painted(pipeline))
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"transformer: no .safetensors file found"):
        MoviePostPipeline.from_pretrained(tmp_path, local_files_only=True)


def test_what_earlier_stages_trained_is_saved_and_opened_in_its_own_dtype(movie, based, tmp_path):
    held = hold(tmp_path / "run", "movie_post_production", config=based)
    half = MoviePostPipeline.from_adapter(held.adapter, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "saved")
    opened = MoviePostPipeline.from_pretrained(tmp_path / "saved", local_files_only=True).transformer.network
    expected = half.transformer.network.state_dict()
    assert {value.dtype for value in expected.values()} == {torch.bfloat16, torch.float32}
    for name, value in opened.state_dict().items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


def test_trained_weights_are_opened_in_each_form_and_on_their_own_base_alone(movie, based, make_pipeline, tmp_path):
    held = hold(tmp_path / "run", "movie_post_production", config=based)
    parts = {"flux": movie.encoders, "image_encoder": movie.encoders / "image_encoder", "dino": movie.encoders / "dino"}
    opened = MoviePostPipeline.from_adapter(held.adapter, **parts)
    opened.set_progress_bar_config(disable=True)
    found = opened.transformer.network.state_dict()
    assert opened.transformer.network.stage == 3
    assert all(torch.equal(found[name], value) for name, value in held.tensors.items())
    average = MoviePostPipeline.from_adapter(held.checkpoint, which="ema", **parts).transformer.network.state_dict()
    assert all(torch.equal(average[name], value) for name, value in held.average.items())
    plain = painted(make_pipeline(3))
    assert not torch.allclose(painted(opened), plain, atol=1e-3)
    away = shutil.copytree(held.checkpoint, tmp_path / "away" / "checkpoint_7")
    with pytest.raises(ValueError, match=r"was not found .*predecessor= of from_adapter"):
        MoviePostPipeline.from_adapter(away)
    first = tmp_path / "run" / "stage2" / "adapter"
    found = MoviePostPipeline.from_adapter(away, predecessor=str(first)).transformer.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in held.tensors.items())
    base = MoviePostPipeline.from_adapter(None, based.base, size="tiny", **parts)
    base.set_progress_bar_config(disable=True)
    assert torch.equal(painted(base), plain)
    half = MoviePostPipeline.from_adapter(held.adapter, dtype=torch.bfloat16, **parts)
    half.set_progress_bar_config(disable=True)
    assert half.transformer.dtype == torch.bfloat16
    near, exact = painted(half), painted(opened)
    assert (near - exact).abs().mean() < 0.05 * exact.abs().mean()
    other = FluxTransformer2DModel(**based.backbone.diffusers())
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"adapter of base weights .*, expected .* give the folder of the base"):
        MoviePostPipeline.from_adapter(held.adapter, tmp_path / "other", **parts)
    with pytest.raises(ValueError, match=r"size 'small' is unknown to family 'movie_post_production'"):
        MoviePostPipeline.from_adapter(None, size="small")


def test_what_cannot_be_painted_is_refused_by_a_sentence(pipeline, movie, make_network, based):
    embeds = pipeline.encode_objects(OBJECTS, 1)
    for change, message in (
        ({"height": 100}, r"height 100 found, expected a multiple of 16"),
        ({"prompt": None}, r"give either prompt, or prompt_embeds and pooled_prompt_embeds; found \[\]"),
        ({"prompt_embeds": torch.zeros(1, 4, 24)}, r"found \['prompt', 'prompt_embeds'\]"),
        ({"objects": [[], []]}, r"objects of 2 pictures given for 1 prompts"),
        ({"objects": [{"bbox": [0, 0, 2, 2], "caption": "a"}]}, r"object 0: 'bbox' is .* in 0..1"),
        ({"objects": [OBJECTS[0] | {"reference": "gone.png"}]}, r"gone.png: missing"),
        ({"objects": OBJECTS * 5}, r"10 objects was given, expected at most instance.max_refs = 8"),
        ({"object_embeds": embeds}, r"either objects or object_embeds"),
        ({"objects": None, "object_embeds": {"boxes": embeds["boxes"]}}, r"lack clip, depth, dino"),
        ({"layout_part": 28}, r"layout_part is 28, expected the part of the steps, 0 to 1"),
        ({"output_type": "video"}, r"output_type is 'video', expected one of pil, np"),
        ({"scheduler": "DDIMScheduler"}, r"does not sample FlowMatching"),
        ({"generator": request_generators(0, "f", range(3))}, r"3 generators given for 1 samples"),
        ({"latents": torch.zeros(1, 16, 4, 4)}, r"noise has shape \[1, 16, 4, 4\], expected \[1, 16, 8, 8\]"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"\['noise'\], expected some of"),
        ({"negative_prompt": ["a", "b"], "true_cfg_scale": 2.0}, r"2 negative prompts given for 1 prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**SHORT | {"objects": OBJECTS} | change)
    bare = MoviePostPipeline.from_network(make_network(1, changed=based), movie.encoders)
    with pytest.raises(ValueError, match=r"no image_encoder to see it; give image_encoder="):
        bare(**SHORT, objects=OBJECTS)
