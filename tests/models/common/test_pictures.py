"""Pictures for previews."""

import torch

from stagecoach.models.common.pictures import TITLE, side_by_side


def test_pictures_of_a_sample_stand_in_a_row_under_their_titles():
    black, white = -torch.ones(2, 3, 40, 80), torch.ones(2, 3, 40, 60)
    found = side_by_side(["a", "b"], ground_truth=black, predicted=white)
    assert list(found) == ["a", "b"]
    assert found["a"].shape == (40 + TITLE, 140, 3)
    assert (found["a"][TITLE:, :80] == 0).all()
    assert (found["a"][TITLE:, 80:] == 255).all()
    assert (found["b"][:TITLE, :80] != 255).any()
