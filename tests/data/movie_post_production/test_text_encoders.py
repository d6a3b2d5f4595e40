"""Text states are those of diffusers' FLUX pipeline, padding included."""

import pytest
import torch
from diffusers import FluxPipeline
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5EncoderModel

from stagecoach.data.encoding.encoders import EncoderError
from stagecoach.data.encoding.text_encoders import PooledTextEncoder, T5TextEncoder

CPU = torch.device("cpu")
TEXTS = ["a striped red ball in front", "caf&eacute; \n\t 日本", "word " * 200, ""]


@pytest.fixture(scope="module")
def pipeline(encoders) -> FluxPipeline:
    return FluxPipeline(
        scheduler=None,
        vae=None,
        transformer=None,
        text_encoder=CLIPTextModel.from_pretrained(encoders / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(encoders / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(encoders / "text_encoder_2"),
        tokenizer_2=AutoTokenizer.from_pretrained(encoders / "tokenizer_2"),
    )


@pytest.mark.parametrize("length", [64, 512])
def test_states_are_those_of_the_flux_pipeline(pipeline, encoders, length):
    with torch.no_grad():
        states, pooled, _ = pipeline.encode_prompt(TEXTS, device=CPU, max_sequence_length=length)
    t5 = T5TextEncoder(encoders / "text_encoder_2", encoders / "tokenizer_2", CPU, length)
    clip = PooledTextEncoder(encoders / "text_encoder", encoders / "tokenizer", CPU)
    torch.testing.assert_close(torch.stack(t5.encode(TEXTS)), states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(clip.encode(TEXTS)), pooled, atol=1e-5, rtol=1e-5)
    assert (states.shape, pooled.shape) == ((4, length, 24), (4, 20))


def test_padding_has_states_of_its_own(encoders):
    """FLUX masks nothing: they are no zeros, and differ from text to text."""
    one, other = T5TextEncoder(encoders / "text_encoder_2", encoders / "tokenizer_2", CPU, 64).encode(TEXTS[:2])
    assert one[-1].abs().max() > 0
    assert (one[-1] - other[-1]).abs().max() > 0


def test_many_texts_come_back_in_order(encoders):
    encoder = PooledTextEncoder(encoders / "text_encoder", encoders / "tokenizer", CPU)
    texts = [f"a ball number {number}" for number in range(70)]
    found = encoder.encode(texts)
    torch.testing.assert_close(found[66], encoder.encode([texts[66]])[0], atol=1e-5, rtol=0)
    assert encoder.encode([]) == []


def test_a_tokenizer_of_another_encoder_is_refused(encoders, tmp_path):
    CLIPTextModel(
        CLIPTextConfig(vocab_size=100, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(EncoderError, match="tokens found, expected at most the 100"):
        PooledTextEncoder(tmp_path / "text_encoder", encoders / "tokenizer", CPU)


def test_a_text_encoder_of_fewer_tokens_is_refused(encoders, tmp_path):
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=1000,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=20,
        )
    ).save_pretrained(tmp_path / "short")
    with pytest.raises(EncoderError, match="a text encoder of 20 tokens found, expected 77"):
        PooledTextEncoder(tmp_path / "short", encoders / "tokenizer", CPU)
