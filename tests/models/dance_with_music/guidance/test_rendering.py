"""Face masks on the device."""

import torch

from stagecoach.models.dance_with_music.guidance.rendering import face_masks


def test_masks_are_one_inside_the_box():
    g = torch.Generator().manual_seed(0)
    low, size = torch.rand(2, 3, 2, generator=g) * 0.5, torch.rand(2, 3, 2, generator=g) * 0.5
    boxes, valid = torch.cat([low, low + size], -1), torch.tensor([[1, 1, 0], [1, 0, 1]])
    found = face_masks(boxes.half(), valid, 6, 9)
    for b in range(2):
        for t in range(3):
            x0, y0, x1, y1 = boxes[b, t].half().tolist()
            for i in range(6):
                for j in range(9):
                    inside = x0 <= (j + 0.5) / 9 < x1 and y0 <= (i + 0.5) / 6 < y1
                    assert found[b, t, i, j] == float(inside and bool(valid[b, t]))
