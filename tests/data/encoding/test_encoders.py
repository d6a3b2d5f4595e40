"""The encoders' output is what diffusers' Wan pipelines would use, and the tiny ones keep what a picture shows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel

from stagecoach.data.encoding.encoders import EncoderError, bits, encoder_entry
from stagecoach.data.encoding.image_encoders import ImageEncoder
from stagecoach.data.encoding.latent_encoders import VideoEncoder
from stagecoach.data.encoding.text_encoders import TextEncoder, clean_prompt
from stagecoach.data.encoding.tiny_encoders import write_wan_encoders
from stagecoach.data.fantasy_world.synthetic import render_clip
from stagecoach.data.files import sha256_file

CPU = torch.device("cpu")
PROMPTS = ["a striped green ball; the camera rises", "a red block", "caf&eacute; \n\t 日本"]


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    return np.stack([render_clip(0, i, 5, 64, 96).video for i in range(10)])


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "encoders"
    write_wan_encoders(path, videos[:8].reshape(-1, *videos.shape[2:]), PROMPTS[:2], seed=0)
    return path


def test_latents_have_wan_strides_and_unit_size(folder, videos):
    latents = torch.stack(VideoEncoder(folder / "vae", CPU).encode(list(videos[:8])))
    assert latents.shape == (8, 16, 2, 8, 12)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.3
    assert ((latents.std((0, 2, 3, 4)) > 0.6) & (latents.std((0, 2, 3, 4)) < 1.4)).all()


def test_a_clip_encodes_alike_alone_and_among_others(folder, videos):
    encoder = VideoEncoder(folder / "vae", CPU)
    torch.testing.assert_close(encoder.encode([videos[1]])[0], encoder.encode(list(videos[:3]))[1], atol=1e-4, rtol=0)


def test_the_tiny_vae_gives_held_out_pictures_back(folder, videos):
    """Better than colours averaged over its 8 x 8 blocks."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    video = torch.from_numpy(videos[8:]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        error = (vae.decode(vae.encode(video).latent_dist.mode()).sample - video).abs()[:, :, 0].mean()
    blocks = torch.nn.functional.avg_pool2d(video[:, :, 0], 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert error < 0.8 * (blocks - video[:, :, 0]).abs().mean()


def test_image_latents_are_those_of_diffusers(folder, videos):
    """`prepare_latents` of the pipeline, which the transformer's input is made with."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    pipeline = WanImageToVideoPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=None)
    image = torch.from_numpy(videos[0, 0]).permute(2, 0, 1)[None].float() / 127.5 - 1
    _, expected = pipeline.prepare_latents(image, 1, 16, 64, 96, 5, torch.float32, CPU, torch.Generator())
    found = VideoEncoder(folder / "vae", CPU).image_latents([videos[0]])[0]
    torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=0)


def test_text_states_are_those_of_the_real_tokens(folder):
    """As diffusers makes them: padded to one length, masked, then cut."""
    found = TextEncoder(folder / "text_encoder", folder / "tokenizer", CPU).encode(PROMPTS)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
    )
    for prompt, states in zip(PROMPTS, found, strict=True):
        tokens = tokenizer(clean_prompt(prompt), padding="max_length", max_length=64, return_tensors="pt")
        count = int(tokens.attention_mask.sum())
        with torch.no_grad():
            padded = model(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
        assert states.shape == (count, 64)
        assert tokens.input_ids[0, count - 1] == tokenizer.eos_token_id
        torch.testing.assert_close(states, padded[:count], atol=1e-5, rtol=0)


def test_prompts_are_one_line_without_character_references():
    assert clean_prompt("  caf&amp;eacute;\n  bar ") == "café bar"


def test_image_states_are_the_last_but_one_of_clip(folder, videos):
    encoder = ImageEncoder(folder / "image_encoder", CPU)
    states = encoder.encode([videos[0, 0], videos[1, 0]])
    assert states.shape == (2, 257, 64)
    model = CLIPVisionModel.from_pretrained(folder / "image_encoder")
    assert model.config.num_hidden_layers == 2
    assert (states[0] - states[1]).abs().max() > 0.01


def test_image_states_are_of_the_whole_picture_as_wan_shrinks_it(folder):
    """Wan2.1's code: numbers in -1..1, bicubic to the square, then CLIP's mean and deviation."""
    encoder = ImageEncoder(folder / "image_encoder", CPU)
    picture = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic", align_corners=False)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    model = CLIPVisionModel.from_pretrained(folder / "image_encoder")
    with torch.no_grad():
        expected = model((x * 0.5 + 0.5 - mean) / deviation, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoder.encode([picture]), expected, rtol=1e-5, atol=1e-5)
    edge = picture.copy()
    edge[:, :8] = 0  # beyond the middle square
    assert (encoder.encode([edge]) - expected).abs().max() > 1e-3


def test_bits_hold_bf16():
    values = torch.tensor([1.0, -2.5, 3.14159])
    stored = bits(values)
    assert stored.dtype == np.uint16
    torch.testing.assert_close(torch.from_numpy(stored).view(torch.bfloat16).float(), values, atol=0, rtol=2**-8)


def test_a_seed_gives_the_same_files(folder, videos, tmp_path):
    frames = videos[:8].reshape(-1, *videos.shape[2:])
    write_wan_encoders(tmp_path / "again", frames, PROMPTS[:2], seed=0)
    for part in ("vae", "text_encoder", "image_encoder"):
        names = [sha256_file(next((base / part).glob("*.safetensors"))) for base in (folder, tmp_path / "again")]
        assert names[0] == names[1]


def test_the_entry_names_the_weights_and_no_path(folder):
    entry = encoder_entry(AutoencoderKLWan, folder / "vae", CPU)
    weights = next((folder / "vae").glob("*.safetensors"))
    assert entry == {"name": "AutoencoderKLWan", "path_name": "vae", "sha256": sha256_file(weights), "dtype": "float32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: None, "no such folder"),
        (Path.mkdir, r"no \.safetensors found"),
        (lambda p: (p.mkdir(), save_file({"a": torch.ones(1)}, p / "a.safetensors")), "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_encoder_is_named(tmp_path, change, message):
    change(tmp_path / "vae")
    with pytest.raises(EncoderError, match=f"vae: .*{message}"):
        encoder_entry(AutoencoderKLWan, tmp_path / "vae", CPU) and VideoEncoder(tmp_path / "vae", CPU)


def test_real_encoders_are_never_replaced_by_tiny_ones(tmp_path, videos):
    (tmp_path / "vae").mkdir()
    with pytest.raises(ValueError, match=r"holds something else than tiny_encoders\.json"):
        write_wan_encoders(tmp_path, videos[0], PROMPTS, seed=0)
