"""Condition dropout belongs to the sample."""

import pytest
import torch

from stagecoach.models.common.keyed import keyed_drop, request_generators, rng_keys, withheld


def batch(*uids: int) -> dict:
    return {"uid": torch.tensor(uids), "rng_key": rng_keys(0, 1, uids)}


def test_a_condition_is_withheld_by_sample_and_purpose_with_the_probability_asked_for():
    many = batch(*range(2000))
    dropped = keyed_drop(many, "text", 0.2, training=True)
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(keyed_drop(batch(*range(1000, 2000)), "text", 0.2, training=True), dropped[1000:])
    assert not torch.equal(keyed_drop(many, "camera", 0.2, training=True), dropped)


def test_nothing_is_withheld_outside_of_training():
    assert not keyed_drop(batch(*range(50)), "text", 1.0, training=False, shape=(3,)).any()


def test_withheld_conditions_are_zeros_where_they_are_dropped_and_the_batch_stays_as_it_is():
    batch = {"text": torch.ones(2, 3, 4), "pooled": torch.ones(2, 4), "uid": torch.arange(2), "latent": torch.ones(2)}
    found = withheld(batch, ("text", "pooled"), torch.tensor([True, False]))
    assert found["text"].flatten(1).sum(1).tolist() == [0, 12]
    assert found["pooled"].sum(1).tolist() == [0, 4]
    assert found["latent"] is batch["latent"]
    assert not withheld(batch, ["text"])["text"].any()
    assert batch["text"].all()


def test_noise_of_a_request_depends_on_seed_request_and_sample_alone():
    def draws(*of):
        return [torch.randn(3, generator=g).tolist() for g in request_generators(*of)]

    several = draws(7, "orbit", range(3))
    assert draws(7, "orbit", [2]) == several[2:]
    others = [draws(8, "orbit", [2]), draws(7, "pan", [2]), several[:1], several[1:2], several[2:]]
    assert len({str(x) for x in others}) == 5
