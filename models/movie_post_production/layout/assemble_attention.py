"""Assemble-Attn (InstanceAssemble): each reference attends jointly with the image tokens in its box, and they with it
and each other, in a sequence [reference; its tokens] of its own.

Projections are token-wise, so q, k and v are made once for all tokens and gathered; the output projections are affine,
so they may follow the average over the references that share a token. The cost but for the attention itself does not
depend on how boxes overlap.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor

from stagecoach.models.common.attention import Attend
from stagecoach.models.movie_post_production.layout.regions import Segments, row_weights

_AMPERE = (8, 0)


class AssembleAttend(Attend):
    """Attention over segments, then the average over those that share a token. Packed segments go through the varlen
    kernel of flash-attention (PyTorch's own build of it where the backend is ``sdpa``), padded ones through SDPA."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, share: Tensor) -> Tensor:
        """``q``, ``k``, ``v`` ``[R, heads, D]``: rows of B N references, then of B T image tokens, rotated. ``share``
        fp32 ``[B, N, T]``. Returns ``[R, heads D]`` in the dtype of ``q``; zeros for tokens that nobody owns."""
        index = segments["index"]
        rows = [x[index] for x in (q, k, v)]
        if "starts" in segments:
            out = varlen_attention(*rows, segments["starts"], int(segments["longest"]), self.backend)
        else:
            rows = [x.transpose(1, 2) for x in rows]  # [G, heads, L, D]
            out = F.scaled_dot_product_attention(*rows, attn_mask=segments["keep"][:, None, None]).transpose(1, 2)
        weighted = out.flatten(-2) * row_weights(segments, share).to(out.dtype).unsqueeze(-1)
        total = torch.zeros(len(q), weighted.shape[-1], device=q.device)
        # Not index_add, which would keep what it adds, and on a GPU add in any order.
        return total.index_put((index.flatten(),), weighted.flatten(0, -2).float(), accumulate=True).to(q.dtype)


def packs(backend: AttentionBackendName, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``AssembleAttend`` of ``backend`` wants its segments packed for tensors of ``dtype`` on ``device``. The
    meta device stands for a GPU of today."""
    if device.type not in ("cuda", "meta") or dtype not in (torch.bfloat16, torch.float16):
        return False
    if backend in (AttentionBackendName.FLASH, AttentionBackendName._FLASH_3):
        return True
    if backend != AttentionBackendName.NATIVE:
        return False
    return device.type == "meta" or torch.cuda.get_device_capability(device) >= _AMPERE


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, backend: AttentionBackendName
) -> Tensor:
    """Attention inside each of the segments that begin at ``starts`` int32 ``[G + 1]`` of ``[M, heads, D]``."""
    if backend == AttentionBackendName.FLASH:
        from flash_attn import flash_attn_varlen_func as kernel
    elif backend == AttentionBackendName._FLASH_3:
        from flash_attn_interface import flash_attn_varlen_func as kernel
    else:
        from torch.nn.attention.varlen import varlen_attn as kernel
    out = kernel(q, k, v, starts, starts, longest, longest)
    return out[0] if isinstance(out, tuple) else out
