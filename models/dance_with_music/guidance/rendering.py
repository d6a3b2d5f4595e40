"""Face masks, drawn on the device from the boxes that a sample stores."""

import torch
from torch import Tensor


def face_masks(boxes: Tensor, valid: Tensor, height: int, width: int) -> Tensor:
    """fp32 ``[B, T, h, w]``: 1 at the latent pixels whose centre lies inside the box, 0 elsewhere and where there is no
    face. ``boxes`` ``[B, T, 4]`` are x0 y0 x1 y1 divided by width and height, ``valid`` ``[B, T]``."""
    x0, y0, x1, y1 = boxes.float().unsqueeze(-1).unbind(-2)
    columns = (torch.arange(width, device=boxes.device, dtype=torch.float32) + 0.5) / width
    rows = (torch.arange(height, device=boxes.device, dtype=torch.float32) + 0.5) / height
    across, down = (columns >= x0) & (columns < x1), (rows >= y0) & (rows < y1)
    return (down.unsqueeze(-1) & across.unsqueeze(-2) & valid.bool()[..., None, None]).float()
