"""Samples of a folder: which files they are, and what is read of them."""

import numpy as np
from PIL import Image

from stagecoach.models.metrics.reading import find_samples, read_sample


def test_pictures_of_each_format_and_moving_gifs_are_samples_and_others_are_named(tmp_path, caplog):
    for name in ("a.webp", "b.tif", "c.bmp"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / name)
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "d.gif", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / "e.heic").touch()
    found = {name: read_sample(name, path) for name, path in find_samples(tmp_path).items()}
    assert {name: tuple(record.frames.shape) for name, record in found.items()} == {
        **dict.fromkeys("abc", (1, 3, 6, 8)),
        "d": (2, 3, 6, 8),
    }
    np.testing.assert_allclose(found["d"].frames[:, :, 0, 0], [[1, 0, 0], [0, 1, 0]], atol=0.01)
    assert "passed over 1 .heic (first e.heic)" in caplog.text
