"""Which operations selective recompute keeps the results of. What it computes is compared in tests/distributed."""

import pytest
import torch
import torch.nn.attention.varlen  # registers torch_attn

from stagecoach.trainer.activation_checkpointing import is_attention


@pytest.mark.parametrize(
    ("op", "kept"),
    [
        (torch.ops.aten._scaled_dot_product_flash_attention.default, True),
        (torch.ops.aten._scaled_dot_product_flash_attention_backward.default, False),
        (torch.ops.torch_attn._varlen_attn.default, True),
        (torch.ops.torch_attn._varlen_attn_backward.default, False),
        (torch.ops.aten.mm.default, False),
    ],
)
def test_forwards_of_attention_kernels_are_kept_and_nothing_else(op, kept):
    assert is_attention(op) is kept
