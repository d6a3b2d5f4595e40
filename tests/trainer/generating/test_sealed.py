"""Folders of answers: kept, refused, replaced, and never half-written."""

import re

import pytest

from stagecoach.data.files import TEMPORARY, DamagedError
from stagecoach.trainer.generating.sealed import (
    LOCK,
    identity_hash,
    is_answered,
    output_folder,
    sealed_folder,
    write_result,
)

REQUEST, SETTINGS = {"id": "a", "steps": 3, "entry": {"prompt": "x"}}, {"weights": "w", "base": "b"}


def answer(folder, request=REQUEST, settings=SETTINGS, facts=None):
    with sealed_folder(folder) as temporary:
        (temporary / "video.mp4").write_bytes(b"frames")
        write_result(
            temporary,
            {
                "sha256": identity_hash(request, settings),
                "request": request,
                "settings": settings,
                "facts": facts or {},
                "shown": ["video.mp4"],
                "seconds": 1.0,
                "peak_bytes": None,
                "version": "1",
            },
        )


def test_an_answer_of_the_same_is_kept_and_of_another_refused_by_what_differs(tmp_path):
    folder = tmp_path / "a"
    assert not is_answered(folder, REQUEST, SETTINGS)
    answer(folder)
    assert is_answered(folder, REQUEST, SETTINGS)
    for request, settings, reason in (
        (REQUEST | {"steps": 4}, SETTINGS, "request.steps 3 instead of 4"),
        (REQUEST | {"entry": {"prompt": "y"}}, SETTINGS, "request.entry.prompt 'x' instead of 'y'"),
        (REQUEST, {"weights": "v", "base": "b"}, "settings.weights 'w' instead of 'v'"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{folder}: was made with {reason}; expected the same")):
            is_answered(folder, request, settings)
    answer(folder, REQUEST | {"steps": 4})
    assert is_answered(folder, REQUEST | {"steps": 4}, SETTINGS)


def test_a_damaged_answer_is_none_and_what_is_no_answer_is_not_touched(tmp_path):
    answer(tmp_path / "a")
    (tmp_path / "a" / "video.mp4").unlink()
    with pytest.raises(DamagedError, match=r"video.mp4: missing.*--remake makes it again"):
        is_answered(tmp_path / "a", REQUEST, SETTINGS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"holds something else than result.json"):
        is_answered(tmp_path / "mine", REQUEST, SETTINGS)


def test_an_answer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        answer(tmp_path / "a", facts={"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_one_command_at_a_time_writes_and_clears_what_a_killed_one_left(tmp_path):
    left = tmp_path / "samples" / f"{TEMPORARY}a.host.1.x"
    left.mkdir(parents=True)
    with output_folder(tmp_path):
        assert not left.exists()
        with pytest.raises(ValueError, match="another command writes to it"), output_folder(tmp_path):
            pass
        assert (tmp_path / LOCK).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
