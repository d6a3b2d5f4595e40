"""One person is followed through a clip by where the points are, whatever the order in the files."""

import json

import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.poses import PoseReading, load_poses


@pytest.fixture
def crossing(dance):
    """[60, 2, 134, 3]: two dancers who change sides; who is larger changes too."""
    frames = len(dance.points)
    along, grown = np.linspace(0, 1, frames), np.linspace(0.8, 1.2, frames)
    people = np.zeros((frames, 2, 134, 3))
    people[..., 2] = 0.9
    middle = dance.points.mean((0, 1))
    for k, (path, size) in enumerate(((along, grown), (1 - along, 0.5 * grown[::-1] + 0.52))):
        people[:, k, :, :2] = (dance.points - middle) * (0.5 * size[:, None, None]) + 0.5
        people[:, k, :, 0] += 0.4 * (path[:, None] - 0.5)
        people[:, k, :, 1] += 0.12 * k
    return people


def write(path, people, order):
    frames = [{"instances": [{"keypoints": people[f, k].tolist()} for k in order(f)]} for f in range(len(people))]
    path.write_text(json.dumps(frames))
    return path


def test_the_identity_does_not_jump_where_files_list_persons_in_any_order(tmp_path, crossing):
    rng = np.random.default_rng(0)
    orders = [rng.permutation(2) for _ in crossing]
    orders[0] = np.array([0, 1])
    file = write(tmp_path / "p.json", crossing, lambda f: orders[f])
    for person in (0, 1):
        poses = load_poses(file, PoseReading(person=person))
        np.testing.assert_allclose(poses.xy, crossing[:, person, :, :2], atol=1e-6)
    assert poses.persons == 2
    area = np.ptp(crossing[..., :2], axis=2).prod(-1)
    assert (area[:, 0] > area[:, 1]).any()
    assert (area[:, 0] < area[:, 1]).any(), "the larger one in a frame is not always the same"
    largest = load_poses(file, PoseReading())
    np.testing.assert_allclose(largest.xy, crossing[:, area.sum(0).argmax(), :, :2], atol=1e-6)


def test_where_the_person_is_hidden_nobody_else_is_taken(tmp_path, crossing):
    file = write(tmp_path / "p.json", crossing, lambda f: [1] if 5 <= f < 12 else [0, 1])
    poses = load_poses(file, PoseReading(person=0))
    hidden = ~poses.conf.any(1)
    assert np.flatnonzero(hidden).tolist() == list(range(5, 12))
    np.testing.assert_allclose(poses.xy[~hidden], crossing[~hidden, 0, :, :2], atol=1e-6)


def test_a_number_that_nobody_has_is_named(tmp_path, crossing):
    file = write(tmp_path / "p.json", crossing, lambda f: [0, 1])
    with pytest.raises(
        RawError, match=r"at most 2 persons per pose found, expected one of number 2; give --person 0 to 1"
    ):
        load_poses(file, PoseReading(person=2))
