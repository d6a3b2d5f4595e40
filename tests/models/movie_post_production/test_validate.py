"""Validation: fixed noise, and a baseline that new adapters equal to the last bit."""

import pytest
import torch

from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from stagecoach.models.movie_post_production.layout.instances import make_instances
from stagecoach.models.movie_post_production.validate import swapped_references, validate
from tests.models.declared import undeclared

ERRORS = ("val_flow_loss", "val_in_box_error", "val_in_box_colour_error")


def test_adapters_at_their_first_values_are_the_baseline(make_network, make_batch, progress):
    """R14(a), D2: at step 0 the references have no influence, and FLUX is not disturbed."""
    found = validate(make_network(2), make_batch([0, 1], 2), progress(2, training=False), {})
    assert not undeclared(MoviePostProductionFamily(), found)
    for name in (*ERRORS, "val_dino_similarity"):
        assert torch.equal(found[name][0], found[f"{name}_baseline"][0]), name
        assert found[name][1] > 0


def test_what_the_references_do_is_measured_with_the_same_noise_each_time(make_network, make_batch, progress):
    network = make_network(2, moved=True)
    first, again = (validate(network, make_batch([0, 1], 2), progress(2, step, False), {}) for step in (0, 70))
    for name in ERRORS:
        assert first[name][0] != first[f"{name}_baseline"][0], name
    for name, (total, count) in first.items():
        assert torch.equal(total, again[name][0]), name
        assert torch.equal(count, again[name][1]), name


def test_swapped_references_stay_in_their_picture_and_leave_the_boxes(make_batch, config, progress):
    batch = make_batch([0, 1, 2])
    batch["boxes"][0, 0] = 0  # a hole among the valid ones
    batch["boxes"][1, 1:] = 0
    before = make_instances(batch, config, progress(training=False))
    after = swapped_references(before)
    assert all(torch.equal(after[name], before[name]) for name in ("boxes", "valid", "depth", "layout_given"))
    assert torch.equal(after["dino"][1], before["dino"][1])
    for b in (0, 2):
        rows = before["valid"][b].nonzero()[:, 0]
        assert len(rows) > 1
        assert torch.equal(after["dino"][b, rows], before["dino"][b, rows.roll(-1)])
        assert torch.equal(after["clip"][b, rows], before["clip"][b, rows.roll(-1)])


def test_stage_one_needs_no_dino(make_network, make_batch, progress):
    found = validate(make_network(1), make_batch([0], 1), progress(1, training=False), {})
    assert "val_dino_similarity" not in found
    assert set(ERRORS) <= set(found)
    assert found["val_alpha_mean"][0] / found["val_alpha_mean"][1] == pytest.approx(0.5)


def test_samples_are_weighed_by_what_they_count(make_network, make_batch, progress):
    network = make_network(2, moved=True)
    together = validate(network, make_batch([0, 1], 2), progress(2, training=False), {})
    alone = [validate(network, make_batch([i], 2), progress(2, training=False), {}) for i in (0, 1)]
    for name, (total, count) in together.items():
        assert sum(a[name][1] for a in alone) == count, name
        assert sum(a[name][0] for a in alone).item() == pytest.approx(total.item(), rel=1e-3, abs=1e-5), name
