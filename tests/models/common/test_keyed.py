"""Conditions that are withheld from a batch."""

import torch

from stagecoach.models.common.keyed import withheld


def test_withheld_conditions_are_zeros_where_they_are_dropped_and_the_batch_stays_as_it_is():
    batch = {"text": torch.ones(2, 3, 4), "pooled": torch.ones(2, 4), "uid": torch.arange(2), "latent": torch.ones(2)}
    found = withheld(batch, ("text", "pooled"), torch.tensor([True, False]))
    assert found["text"].flatten(1).sum(1).tolist() == [0, 12]
    assert found["pooled"].sum(1).tolist() == [0, 4]
    assert found["latent"] is batch["latent"]
    assert not withheld(batch, ["text"])["text"].any()
    assert batch["text"].all()
