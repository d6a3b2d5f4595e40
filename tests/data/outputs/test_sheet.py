"""The contact sheet: frames spread over a clip, in rows with titles."""

import numpy as np
from PIL import Image

from stagecoach.data.outputs.sheet import contact_sheet, spread, write_picture
from stagecoach.data.pictures import TITLE


def test_a_sheet_shows_frames_from_the_first_to_the_last_in_rows(tmp_path):
    video = np.repeat(np.arange(81, dtype=np.uint8)[:, None, None, None] * 3, 20 * 40 * 3, 1).reshape(81, 20, 40, 3)
    picture = contact_sheet({"video": video, "depth": 255 - video[:2]}, columns=5, width=80)
    assert picture.shape == (2 * (40 + TITLE), 5 * 80, 3)
    row = TITLE + 20
    assert picture[row, 40::80, 0].tolist() == [0, 60, 120, 180, 240]
    below = picture[40 + TITLE + row, 40::80, 0].tolist()
    assert below == [255, 252, 255, 255, 255]  # white where there are no frames
    write_picture(tmp_path / "contact.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "contact.png")), picture)


def test_few_frames_are_shown_once_each():
    assert spread(3, 6) == [0, 1, 2]
    assert spread(1, 6) == [0]
    assert spread(81, 5) == [0, 20, 40, 60, 80]
