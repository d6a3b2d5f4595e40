"""Cosines of faces, sample by sample; what is masked has no influence."""

import math
from dataclasses import replace

import pytest
import torch

from stagecoach.models.dance_with_music.clip import Clip, References
from stagecoach.models.dance_with_music.metrics import identity_cosine


class _MeanColour(torch.nn.Module):
    def forward(self, faces):
        return faces.mean((2, 3))


def test_identity_is_the_cosine_with_the_reference_where_both_have_a_face():
    frames = torch.zeros(2, 3, 3, 32, 32)
    for n, colour in enumerate(([1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0])):
        frames[:, n, :] = torch.tensor(colour)[:, None, None]
    none = torch.zeros(2, 3, 134, 2)
    clip = Clip(frames, none, none, none[..., 0], none[..., 0, 0], none[..., 0, 0], none[..., 0, 0])
    clip = replace(clip, face_box=torch.tensor([0.3, 0.3, 0.6, 0.6]).expand(2, 3, 4))
    clip = replace(clip, face_valid=torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.uint8))
    reference = torch.tensor([[5.0, 0, 0], [5.0, 0, 0]])
    one = References(frames, frames, reference, reference[:, 0], torch.tensor([1, 0]))
    found, count = identity_cosine(_MeanColour(), frames, clip, one)
    assert found.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert count.tolist() == [2, 0]
    found, count = identity_cosine(_MeanColour(), frames, clip, replace(one, has_face=torch.tensor([1, 1])))
    assert found.tolist() == pytest.approx([1.0, 1 + math.sqrt(0.5)], abs=1e-6)
