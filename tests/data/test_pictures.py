"""A picture file of each kind becomes the RGB picture that a person sees."""

import numpy as np
import pytest
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.footage import open_footage
from stagecoach.data.fantasy_world.maps import read_maps
from stagecoach.data.pictures import (
    CoverCrop,
    find_pictures,
    picture_size,
    read_picture,
    shrink,
    unread_pictures,
    warn_of_others,
)
from stagecoach.models.common.pictures import read_pixels

RED, GREEN, WHITE, BLACK = [255, 0, 0], [0, 128, 0], [255] * 3, [0] * 3


def read(path, **options) -> np.ndarray:
    return np.asarray(read_picture(path, **options))


def save(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize(("orientation", "corner"), [(1, 0), (2, 1), (3, 3), (4, 2), (5, 0), (6, 1), (7, 3), (8, 2)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path, orientation, corner, suffix):
    """The stored upper left quarter is red; ``corner`` is where it is seen: upper left, upper right, lower left, lower
    right."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32] = RED
    turned = Image.Exif()
    turned[0x0112] = orientation
    options = {"quality": 100} if suffix in ("jpg", "webp") else {}
    path = save(Image.fromarray(pixels), tmp_path / f"a.{suffix}", exif=turned, **options)
    size = (64, 32) if orientation >= 5 else (32, 64)
    found = read(path)
    assert found.shape[:2] == picture_size(path) == size
    quarters = [found[size[0] // 4 * (1 + 2 * r), size[1] // 4 * (1 + 2 * c), 0] for r in (0, 1) for c in (0, 1)]
    assert [int(q > 128) for q in quarters] == [int(k == corner) for k in range(4)]


@pytest.mark.parametrize("pixels", [np.zeros((32, 64), np.uint8), np.zeros((32, 64), np.uint16)])
def test_a_grey_tiff_is_turned_upright(tmp_path, pixels):
    """Pillow 13 scrambles uncompressed ones that it maps into memory."""
    pixels[:16, :32] = np.iinfo(pixels.dtype).max
    turned = Image.Exif()
    turned[0x0112] = 6
    found = read(save(Image.fromarray(pixels), tmp_path / "a.tif", exif=turned))[..., 0]
    assert found.shape == (64, 32)
    expected = np.zeros((64, 32))
    expected[:32, 16:] = 255
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white_or_on_what_is_asked_for(tmp_path, mode):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:2] = (0, 0, 0, 255)
    pixels[3] = (0, 0, 0, 51)
    path = save(Image.fromarray(pixels).convert(mode), tmp_path / "a.png")
    assert read(path)[:, 0].tolist() == [BLACK, BLACK, WHITE, [204] * 3]
    assert read(path, behind="black").max() == 0


def test_a_palette_gives_its_colours_and_its_transparent_one_lies_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([*RED, *GREEN, *BLACK])
    assert read(save(image, tmp_path / "a.png"))[0].tolist() == [RED, GREEN, BLACK]
    assert read(save(image, tmp_path / "b.png", transparency=1))[0].tolist() == [RED, WHITE, BLACK]
    assert read(save(image, tmp_path / "c.gif", transparency=1))[0].tolist() == [RED, WHITE, BLACK]


def test_one_transparent_colour_lies_on_white(tmp_path):
    image = Image.fromarray(np.array([[RED, GREEN]], np.uint8))
    assert read(save(image, tmp_path / "a.png", transparency=tuple(GREEN)))[0].tolist() == [RED, WHITE]


def test_inks_become_light(tmp_path):
    """CMYK of a TIFF as it is, of a JPEG with Adobe's inverted inks: both show the same red."""
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert read(save(inks, tmp_path / "a.tif"))[0, 0].tolist() == RED
    assert np.abs(read(save(inks, tmp_path / "a.jpg", quality=100))[8, 8].astype(int) - RED).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    ramp = np.array([[0, 128, 129, 257, 32768, 65278, 65535]], np.uint16)
    found = read(save(Image.fromarray(ramp), tmp_path / f"a.{suffix}"))
    assert found[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255]
    assert (found[..., :1] == found).all()


def test_a_transparent_grey_of_sixteen_bits_lies_on_white(tmp_path):
    path = save(Image.fromarray(np.array([[0, 300]], np.uint16)), tmp_path / "a.png", transparency=300)
    assert read(path)[0].tolist() == [BLACK, WHITE]


@pytest.mark.parametrize("values", [np.array([[0, 70000]], np.int32), np.array([[0.0, 1.0]], np.float32)])
def test_grey_values_of_unknown_range_are_refused(tmp_path, values):
    path = save(Image.fromarray(values), tmp_path / "a.tif")
    with pytest.raises(RawError, match=r"a\.tif: grey values of mode . from 0 to \d+ found, expected 8 or 16 bits"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_becomes_three_equal_channels(tmp_path, mode):
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)
    assert read(save(image, tmp_path / "a.png"))[0].tolist() == [BLACK, WHITE]


def test_sixteen_bit_grey_that_holds_twelve_is_said_to_be_all_but_black(tmp_path, caplog):
    read_picture(save(Image.fromarray(np.array([[0, 4095]], np.uint16)), tmp_path / "a.png"))
    assert "a.png: 16-bit grey up to 4095 of 65535 is all but black" in caplog.text
    caplog.clear()
    read_picture(save(Image.fromarray(np.array([[0, 4096]], np.uint16)), tmp_path / "b.png"))
    assert not caplog.text


@pytest.mark.parametrize("suffix", ["bmp", "gif", "tif", "tiff", "webp", "png", "jpg"])
def test_each_suffix_that_is_looked_for_is_read(tmp_path, suffix):
    path = save(Image.new("RGB", (8, 6), tuple(RED)), tmp_path / f"a.{suffix.upper()}")
    assert find_pictures(tmp_path) == ([path], [])
    assert np.abs(read(path).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_of_several_pictures_in_one_file_the_first_is_read_and_the_others_are_said(tmp_path, suffix, caplog):
    first, second = (Image.new("RGB", (8, 6), tuple(colour)) for colour in (RED, BLACK))
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(first, tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert read(path)[0, 0].tolist() == RED
    assert f"a.{suffix}: 2 pictures in one file, of which the first is read" in caplog.text


def test_what_a_phone_stores_behind_a_photo_is_not_worth_a_word(tmp_path, caplog):
    path = save(Image.new("RGB", (8, 6)), tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (4, 3))])
    assert read(path.rename(tmp_path / "a.jpg")).shape == (6, 8, 3)
    assert not caplog.text


def test_a_picture_that_is_given_is_seen_as_a_file_of_it_is():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    ramp = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert read_pixels(clear).tolist() == [[WHITE] * 2] * 2
    assert read_pixels(ramp)[0, :, 0].tolist() == [0, 128, 255]


def test_files_of_a_folder_of_pictures_that_are_passed_over_are_named(tmp_path, caplog):
    (tmp_path / "b").mkdir()
    for name in ("b/a.png", "b/c.heic", "d.tga", "e.tga", "f", "g.txt", ".DS_Store", "._h.png", ".i/j.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pictures, others = find_pictures(tmp_path, below=True)
    assert pictures == [tmp_path / "b" / "a.png"]
    assert unread_pictures(others) == [tmp_path / "b" / "c.heic"]
    warn_of_others(tmp_path, others, (".txt",))
    expected = "passed over 1 .heic, 2 .tga, 1 without a suffix (first c.heic), no PNG, JPEG, WebP, TIFF, BMP or GIF"
    assert f"{tmp_path}: {expected}" in caplog.text
    assert find_pictures(tmp_path) == ([], [tmp_path / name for name in ("d.tga", "e.tga", "f", "g.txt")])


def test_a_dance_of_pictures_is_read_upright_and_scaled(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.full((4, 6), 65535 // 2, np.uint16)).save(tmp_path / "frame_0.png", exif=turned)
    (frame,) = open_footage(tmp_path, 30.0).read([0])
    assert frame.shape == (6, 4, 3)
    assert (frame == 127).all()


def test_depth_maps_keep_their_sixteen_bits(tmp_path):
    Image.fromarray(np.array([[1, 65535]], np.uint16)).save(tmp_path / "frame_0.png")
    assert read_maps(tmp_path, 1, "depth").tolist() == [[[1, 65535]]]


def test_a_preview_keeps_the_shape_and_is_never_enlarged():
    picture = np.zeros((100, 50, 3), np.uint8)
    assert shrink(picture, 20).shape == (20, 10, 3)
    assert shrink(picture, 200).shape == (100, 50, 3)


def test_a_crop_of_the_pictures_own_size_changes_nothing():
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    np.testing.assert_array_equal(CoverCrop.of(16, 24, 16, 24).image(picture), picture)
