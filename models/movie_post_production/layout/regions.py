"""Which image tokens a box covers, and the segments [reference; its tokens] that Assemble-Attn runs over.

Tokens are counted row by row over the grid of h x w tokens, T = h w.
"""

from typing import Literal

import torch
from torch import Tensor

Segments = dict[str, Tensor]
"""Rows of a table of B N reference tokens followed by B T image tokens, in one of two forms:

- padded: ``index`` int64 ``[B N, L]``, row 0 of each the reference, and ``keep`` bool ``[B N, L]``;
- packed: ``index`` int64 ``[M]``, segment after segment, ``starts`` int32 ``[B N + 1]``, and ``longest`` int32 on the
  CPU, the length of the longest.

``entry``, shaped as ``index``: where the pair of reference and token stands in a flat [B, N, T], 0 for references and
padding; ``paired`` bool, shaped as ``index``: True for such pairs.
"""


def token_rectangles(boxes: Tensor, h: int, w: int) -> Tensor:
    """int64 ``[..., 4]``: x1 y1 x2 y2 in tokens, the ends exclusive, of ``boxes`` ``[..., 4]`` in [0, 1]. Corners are
    truncated (InstanceAssemble); a box has at least one token, also where it ends at the picture's border."""
    corners = (boxes.float() * torch.tensor([w, h, w, h], dtype=torch.float32, device=boxes.device)).long()
    limit = torch.tensor([w, h], device=boxes.device)
    first = corners[..., :2].clamp_min(0).minimum(limit - 1)
    last = corners[..., 2:].maximum(first + 1).minimum(limit)
    return torch.cat([first, last], dim=-1)


def token_cover(boxes: Tensor, valid: Tensor, h: int, w: int) -> Tensor:
    """bool ``[B, N, h w]``: the tokens inside each valid box."""
    x1, y1, x2, y2 = token_rectangles(boxes, h, w).unsqueeze(-2).unbind(-1)
    rows, columns = torch.arange(h, device=boxes.device), torch.arange(w, device=boxes.device)
    inside_y, inside_x = (y1 <= rows) & (rows < y2), (x1 <= columns) & (columns < x2)
    return (inside_y.unsqueeze(-1) & inside_x.unsqueeze(-2) & valid[..., None, None]).flatten(-2)


def owners(cover: Tensor, depth: Tensor, overlap: Literal["average", "depth"]) -> Tensor:
    """bool ``[B, N, T]``: the references that share each token of ``cover``: all that cover it, or of these the nearest
    by ``depth`` ``[B, N]`` (OcclusionFormer, arXiv 2605.21343)."""
    if overlap == "average":
        return cover
    far = depth.max() + 1 if depth.numel() else depth.new_zeros(())
    at = torch.where(cover, depth.unsqueeze(-1), far)
    return cover & (at == at.amin(dim=1, keepdim=True))


def box_centres(boxes: Tensor, h: int, w: int) -> Tensor:
    """fp32 ``[..., 3]``: position ids (0, row, column) of the middle of each box, in tokens."""
    x1, y1, x2, y2 = token_rectangles(boxes, h, w).float().unbind(-1)
    return torch.stack([torch.zeros_like(x1), (y1 + y2) / 2, (x1 + x2) / 2], dim=-1)


def make_segments(cover: Tensor, packed: bool, device: torch.device | str) -> Segments:
    """Segments of ``cover`` bool ``[B, N, T]``, on ``device``. They are made where ``cover`` is; reading how many
    tokens there are waits for a GPU, once per forward."""
    b, n, t = cover.shape
    covered = cover.flatten(0, 1)  # [G, T]
    lengths = covered.sum(1)
    group, token = covered.nonzero(as_tuple=True)  # segment after segment
    starts = torch.nn.functional.pad((lengths + 1).cumsum(0), (1, 0))
    position = (
        1
        + torch.arange(len(group), device=cover.device)
        - (starts[:-1] - torch.arange(b * n, device=cover.device))[group]
    )  # within the segment
    table = b * n + group // n * t + token
    longest = int(lengths.max()) + 1
    references = torch.arange(b * n, device=cover.device)
    shape = (int(starts[-1]),) if packed else (b * n, longest)
    at = (starts[group] + position,) if packed else (group, position)
    first = (starts[:-1],) if packed else (references, torch.zeros_like(references))
    index, entry = (torch.zeros(shape, dtype=torch.int64, device=cover.device) for _ in range(2))
    paired = torch.zeros(shape, dtype=torch.bool, device=cover.device)
    index[at], index[first], entry[at], paired[at] = table, references, group * t + token, True
    segments = {"index": index, "entry": entry, "paired": paired}
    if packed:
        segments["starts"] = starts.int()
    else:
        segments["keep"] = torch.arange(longest, device=cover.device) <= lengths[:, None]
    segments = {name: value.to(device) for name, value in segments.items()}
    return segments | ({"longest": torch.tensor(longest, dtype=torch.int32, device="cpu")} if packed else {})


def row_weights(segments: Segments, share: Tensor) -> Tensor:
    """fp32, shaped as ``segments["index"]``: 1 for references, ``share`` ``[B, N, T]`` of each pair, 0 for padding."""
    keep = segments.get("keep", torch.ones_like(segments["paired"]))
    pairs = share.flatten()[segments["entry"]]
    return torch.where(segments["paired"], pairs, keep.to(pairs.dtype))


def shares(weight: Tensor, owned: Tensor) -> tuple[Tensor, Tensor]:
    """How references of ``weight`` fp32 ``[B, N]`` share the tokens that they own (bool ``[B, N, T]``).

    With m = ``owned`` and c its count per token: share_it = weight_i m_it / sum_j weight_j m_jt, fp32 ``[B, N, T]``,
    which adds up to 1, and strength_t = sum_i weight_i m_it / max(c_t, 1), fp32 ``[B, T, 1]``. Their product is
    InstanceAssemble's average over the references that cover a token, each times its weight.
    """
    held = weight.float().unsqueeze(-1) * owned
    total = held.sum(1, keepdim=True)
    strength = total / owned.sum(1, keepdim=True).clamp_min(1)
    return held / torch.where(total > 0, total, 1.0), strength.transpose(1, 2)
