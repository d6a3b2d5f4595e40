"""Backends by name: what auto means, which names are refused, and that a choice reaches every attention."""

import math

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

from stagecoach.models.common import attention
from stagecoach.models.common.attention import Attend, resolve_backend, set_backend


def test_auto_is_pytorchs_attention_without_a_gpu():
    assert resolve_backend("auto", "cpu", torch.bfloat16) is AttentionBackendName.NATIVE


@pytest.mark.parametrize(
    ("importable", "expected"),
    [
        ({"flash", "flash_3"}, AttentionBackendName.FLASH),
        ({"flash"}, AttentionBackendName.FLASH),
        ({"flash_3"}, AttentionBackendName.NATIVE),
        (set(), AttentionBackendName.NATIVE),
    ],
)
def test_auto_takes_the_flash_attention_that_has_a_backward_where_it_imports(monkeypatch, importable, expected):
    """diffusers' operator around version 3 has none."""
    monkeypatch.setattr(attention, "_import_error", lambda name: "" if name in importable else "no such module")
    assert resolve_backend("auto", "cuda", torch.bfloat16) is expected


def test_auto_leaves_fp32_to_pytorch_as_flash_attention_has_16_bits_only():
    assert resolve_backend("auto", "cuda", torch.float32) is AttentionBackendName.NATIVE


@pytest.mark.parametrize(
    ("name", "device", "dtype", "message"),
    [
        ("flush", "cpu", torch.float32, "'flush' is unknown, expected auto or one of flash, flash_3, xformers, sdpa"),
        ("flash", "cpu", torch.bfloat16, "'flash' needs a CUDA device, found cpu"),
        ("flash_3", "cuda", torch.float32, "needs bf16 or fp16, found torch.float32"),
        ("xformers", "cuda", torch.bfloat16, "needs the package xformers.ops, which does not import"),
    ],
)
def test_a_backend_that_cannot_run_is_refused_in_one_sentence(monkeypatch, name, device, dtype, message):
    monkeypatch.setitem(attention.BACKENDS, "xformers", (AttentionBackendName.XFORMERS, "xformers.ops"))
    monkeypatch.setattr(attention, "_import_error", lambda name: "No module named 'xformers'")
    with pytest.raises(ValueError, match=message):
        resolve_backend(name, device, dtype)


def test_a_missing_package_is_an_import_error_not_a_crash(monkeypatch):
    monkeypatch.setitem(attention.BACKENDS, "flash", (AttentionBackendName.FLASH, "a_package_that_is_not_there"))
    with pytest.raises(ValueError, match="a_package_that_is_not_there"):
        resolve_backend("flash", "cuda", torch.bfloat16)


def test_the_choice_reaches_diffusers_processors_and_own_attention():
    network = torch.nn.ModuleDict({"own": Attend(), "wan": WanAttention(8, 2, 4, processor=WanAttnProcessor())})
    set_backend(network, AttentionBackendName._NATIVE_MATH)
    assert network["own"].backend is AttentionBackendName._NATIVE_MATH
    assert network["wan"].processor._attention_backend is AttentionBackendName._NATIVE_MATH


def test_attend_is_softmax_attention():
    q, k, v = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(Attend()(q, k, v), torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
