"""Tiny random networks of transformers that take words and pictures, in folders as of the real ones."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel

from stagecoach.data.encoding.tiny_encoders import tiny_tokenizer

WORDS = ["a red ball in a room"]
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PARTS = ("vision_start", "vision_end", "image_pad", "video_pad")
CHAT = """{% for turn in messages %}<|im_start|>{{ turn.role }}
{% for part in turn.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}\
{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_qwen(folder: Path, generation: str) -> None:
    """Qwen2.5-VL ("2.5") or Qwen3-VL ("3")."""
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = tiny_tokenizer(WORDS, "umt5")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{n}|>" for n in ("im_start", "im_end", *PARTS)]})
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.chat_template = CHAT
    tokens = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{part}|>")
        for name, part in zip(("vision_start", "vision_end", "image", "video"), PARTS, strict=True)
    }
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    if generation == "3":
        patch, kind = 16, "Qwen3VL"
        text["head_dim"] = 8
        vision = {**VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    else:
        patch, kind = 14, "Qwen2_5_VL"
        vision = {**VISION, "fullatt_block_indexes": [1], "window_size": 56}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config={**vision, "patch_size": patch}, **tokens
    )
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForConditionalGeneration")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    Qwen2VLImageProcessorPil(patch_size=patch, size=size).save_pretrained(folder)


def write_florence(folder: Path) -> None:
    from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
    from transformers import PreTrainedTokenizerFast as Fast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    plain = tiny_tokenizer(WORDS, "clip")
    ends = {"bos_token": plain.bos_token, "eos_token": plain.eos_token, "pad_token": plain.pad_token}
    more = {"image_token": "<image>"}
    tokenizer = Fast(tokenizer_object=plain.backend_tokenizer, extra_special_tokens=more, **ends)
    sides = ("encoder", "decoder")
    end = tokenizer.eos_token_id
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 32,
        **{f"{side}_layers": 2 for side in sides},
        **{f"{side}_attention_heads": 2 for side in sides},
        **{f"{side}_ffn_dim": 32 for side in sides},
        "pad_token_id": end,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
        "decoder_start_token_id": end,
        "forced_eos_token_id": end,
    }
    vision = {
        "depths": [1, 1, 1, 1],
        "embed_dim": [8, 8, 16, 32],
        "num_heads": [1, 1, 2, 2],
        "num_groups": [1, 1, 2, 2],
        "window_size": 4,
        "projection_dim": 32,
    }
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    torch.manual_seed(0)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    pictures.image_seq_length = 64 // 32 * 64 // 32 + 1  # the cells of stride 32 and their mean
    Florence2Processor(pictures, tokenizer).save_pretrained(folder)


def write_grounding_dino(folder: Path, phrases: list[str]) -> None:
    """The tokenizer is BERT's with the letters and the words of ``phrases``."""
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoProcessor,
        SwinConfig,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *dict.fromkeys(" ".join(phrases).split())]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    swin = SwinConfig(
        image_size=128, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config={"model_type": "bert", **TEXT, "vocab_size": len(words), "max_position_embeddings": 64},
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=9,
        max_text_len=32,
    )
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 192})
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)


def write_rt_detr(folder: Path) -> None:
    """RT-DETRv2 of two classes, one of them "person", each about as likely as not."""
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        num_queries=9,
        initializer_bias_prior_prob=0.5,
        id2label={0: "person", 1: "bicycle"},
        label2id={"person": 0, "bicycle": 1},
    )
    torch.manual_seed(0)
    RTDetrV2ForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
