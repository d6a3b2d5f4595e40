"""Arrays of .npy and .npz files, read in any number of threads."""

import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stagecoach.data.numpy_files import NpzFile, map_npy

ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    np.arange(4, dtype=">u2"),
    np.float64(3.5) * np.ones(()),
    np.zeros((0, 5), np.uint8),
]


@pytest.mark.parametrize("array", ARRAYS, ids=[f"{a.dtype.str}{list(a.shape)}" for a in ARRAYS])
def test_arrays_are_those_that_numpy_reads(tmp_path, array):
    np.save(tmp_path / "one.npy", array)
    np.savez_compressed(tmp_path / "some.npz", one=array, names=np.array(["a", "b"]))
    with NpzFile(tmp_path / "some.npz") as archive:
        assert list(archive) == ["one", "names"]
        assert [archive.is_numbers(name) for name in archive] == [True, False]
        found = archive["one"]
        with pytest.raises(ValueError, match="expected descr, fortran_order and shape of plain numbers"):
            archive["names"]
        with pytest.raises(KeyError):
            archive["two"]
    for one in (map_npy(tmp_path / "one.npy"), found):
        assert one.dtype == array.dtype
        np.testing.assert_array_equal(one, np.load(tmp_path / "one.npy"))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length_than_its_header_tells_is_refused(tmp_path, change):
    path = tmp_path / "one.npy"
    np.save(path, np.zeros(100))
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"0")
    with pytest.raises(ValueError, match=f"{len(data) + change} bytes, where its header tells of {len(data)}"):
        map_npy(path)


def test_threads_that_read_at_once_all_read_what_is_there(tmp_path):
    """CPython 3.11's parser, which NumPy reads headers with, raises SystemError now and then in threads that switch
    within it; garbage collection and short turns make that likely."""
    np.save(tmp_path / "one.npy", np.arange(3))
    np.savez(tmp_path / "some.npz", one=np.arange(3))

    def read(_):
        with NpzFile(tmp_path / "some.npz") as archive:
            return map_npy(tmp_path / "one.npy").tolist() == archive["one"].tolist() == [0, 1, 2]

    turn, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(1)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(400)))
    finally:
        sys.setswitchinterval(turn)
        gc.set_threshold(*threshold)
