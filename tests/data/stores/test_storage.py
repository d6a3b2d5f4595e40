"""Files of a local folder by name, and which storage a place gets."""

import errno
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.data import local_files
from stagecoach.data.files import DamagedError
from stagecoach.data.local_files import UnreachableError
from stagecoach.data.stores.cached import CachedStorage
from stagecoach.data.stores.opening import open_storage
from stagecoach.data.stores.remote import RemoteStorage
from stagecoach.data.stores.storage import CacheOptions, LocalStorage

CONTENT = os.urandom(5000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a set%20")
    (folder / "train").mkdir()
    (folder / "train" / "a.tar").write_bytes(CONTENT)
    (folder / "manifest.json").write_bytes(b"{}")
    return folder


def test_local_files_are_named_measured_and_read(folder):
    storage = open_storage(folder)
    assert storage.names() == ["manifest.json"]
    assert (storage.read("manifest.json"), storage.size("manifest.json")) == (b"{}", 2)
    assert storage.exists("manifest.json")
    train = storage.child("train")
    assert train.url == str(folder / "train")
    assert train.describe("a.tar") == str(folder / "train" / "a.tar")
    assert train.size("a.tar") == 5000
    assert train.size("b.tar") is None
    assert not train.exists("b.tar")
    assert not storage.exists("train")  # a folder is no file
    assert not train.forget("a.tar", 5000)  # no copy


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_range_is_exact_or_an_error_that_names_the_file(folder, offset, size):
    storage = open_storage(folder / "train")
    if offset + size <= len(CONTENT):
        assert storage.read_range("a.tar", offset, size) == CONTENT[offset : offset + size]
    else:
        with pytest.raises(DamagedError, match=r"a\.tar: -?\d+ of \d+ bytes at offset"):
            storage.read_range("a.tar", offset, size)


def test_missing_local_files_are_named(folder):
    storage = open_storage(folder)
    with pytest.raises(DamagedError, match=r"b\.tar: cannot be read \(No such file"):
        storage.read_range("b.tar", 0, 1)
    with pytest.raises(DamagedError, match=r"b\.json: cannot be read \(No such file"):
        storage.read("b.json")
    with pytest.raises(UnreachableError, match=r"nowhere: cannot be listed \(No such file"):
        storage.child("nowhere").names()


def test_file_that_is_replaced_is_read_anew(tmp_path):
    storage = open_storage(tmp_path)
    for content in (b"first", b"other"):
        (tmp_path / "new").write_bytes(content)
        os.replace(tmp_path / "new", tmp_path / "a.tar")
        assert storage.read_range("a.tar", 0, 5) == content


def test_threads_share_a_local_storage(folder):
    storage = open_storage(folder / "train")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: storage.read_range("a.tar", n, 1000), range(0, 4000, 7)))
    assert found == [CONTENT[n : n + 1000] for n in range(0, 4000, 7)]


@pytest.mark.parametrize("form", ["{}", "file://{}", "file:{}", "FILE://localhost{}"])
def test_local_paths_and_file_urls_are_the_same_folder(folder, form):
    path = str(folder) if form == "{}" else str(folder).replace("%", "%25").replace(" ", "%20")
    storage = open_storage(form.format(path), CacheOptions(Path("unused"), 1))
    assert isinstance(storage, LocalStorage)
    assert storage.directory == folder


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("file://otherhost/a", "names the host 'otherhost'"),
        ("simplecache::s3://bucket/a", "chains file systems"),
        ("nosuch://bucket/a", "nosuch: URLs are unknown to fsspec"),
    ],
)
def test_place_that_cannot_be_read_is_refused_when_opened(place, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_storage(place)


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("s3://bucket/a", "s3fs.S3FileSystem", "s3fs"),
        ("gs://bucket/a", "gcsfs.GCSFileSystem", "gcsfs"),
        ("http://host/a", "fsspec.implementations.http.HTTPFileSystem", "aiohttp"),
    ],
)
def test_missing_driver_names_the_package_to_install(monkeypatch, url, module, package):
    def missing(name):
        assert name == module
        raise ModuleNotFoundError(f"No module named {package!r}")

    registry = sys.modules["fsspec.registry"]
    monkeypatch.delitem(registry._registry, url.partition(":")[0], raising=False)
    monkeypatch.setattr(registry, "_import_class", missing)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        open_storage(url.replace("host", "a-host-not-asked-before"))


def test_remote_places_get_the_cache_and_travel_by_pickle(tmp_path):
    plain = open_storage("memory://set/train")
    cached = open_storage("memory://set", CacheOptions(tmp_path / "cache", 1000)).child("train")
    assert isinstance(plain, RemoteStorage)
    assert isinstance(cached, CachedStorage)
    for storage in (plain, cached, LocalStorage(tmp_path)):
        again = pickle.loads(pickle.dumps(storage))
        assert (type(again), again.describe("a.tar")) == (type(storage), storage.describe("a.tar"))
    assert plain.describe("a.tar") == cached.describe("a.tar") == "memory://set/train/a.tar"


def test_cache_that_can_hold_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="may hold 0 bytes"):
        CacheOptions(tmp_path, 0)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnreachableError, match="cannot be made a cache folder"):
        open_storage("memory://set", CacheOptions(tmp_path / "file" / "cache", 1))


@pytest.fixture
def troubled(monkeypatch):
    """A function that lets the next openings of a tar fail with the numbers of errors that it is given."""
    real, failures = os.open, []

    def open_(path, *args, **options):
        if str(path).endswith(".tar") and failures:
            number = failures.pop(0)
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **options)

    monkeypatch.setattr(local_files.os, "open", open_)
    monkeypatch.setattr(local_files, "FIRST_DELAY", 0.001)
    return failures.extend


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EIO, errno.ETIMEDOUT])
def test_a_moment_of_trouble_on_a_file_system_is_waited_out(folder, troubled, number):
    troubled([number] * local_files.RETRIES)
    assert open_storage(folder / "train").read_range("a.tar", 0, 10) == CONTENT[:10]


def test_lasting_trouble_on_a_file_system_is_named_and_is_no_damage(folder, troubled):
    troubled([errno.EIO] * 100)
    with pytest.raises(UnreachableError, match=r"a\.tar: not read in 7 attempts over .* Input/output error"):
        open_storage(folder / "train").read_range("a.tar", 0, 10)


def test_a_file_that_may_not_be_read_is_refused_at_once_and_is_no_damage(folder, troubled):
    troubled([errno.EACCES])
    with pytest.raises(UnreachableError, match=r"a\.tar: cannot be read \(Permission denied"):
        open_storage(folder / "train").read_range("a.tar", 0, 10)


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    local = open_storage(tmp_path)
    assert local.size("a.tar") is None
    assert local.names() == []
    for read in (
        lambda: local.read("a.tar"),
        lambda: local.read_range("a.tar", 0, 10),
        lambda: local_files.LocalFile(tmp_path / "a.tar"),
    ):
        with pytest.raises(DamagedError, match=r"a\.tar: no regular file"):
            read()


@pytest.mark.parametrize("size", [2**36, 2**63, 2**64, 2**80])
def test_no_more_is_read_than_a_file_has(folder, size):
    train = open_storage(folder / "train")
    for offset, wanted in ((0, size), (size, 1)):
        with pytest.raises(DamagedError, match=r"a\.tar: \d+ of \d+ bytes at offset"):
            train.read_range("a.tar", offset, wanted)


def test_local_folder_needs_no_fsspec():
    code = (
        "import sys; sys.modules['fsspec'] = None\nfrom stagecoach.data.stores.opening import open_storage\n"
        "assert open_storage('.').names()\n"
        "try:\n    open_storage('s3://a/b')\nexcept ValueError as error:\n    print(error)"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert "pip install fsspec" in found.stdout
