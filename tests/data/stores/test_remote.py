"""Ranges over http and other drivers: right bytes or a sentence, in bounded time, with any server."""

import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from stagecoach.data import local_files
from stagecoach.data.files import DamagedError
from stagecoach.data.local_files import UnreachableError
from stagecoach.data.stores import drivers, remote
from stagecoach.data.stores.opening import open_storage
from stagecoach.data.stores.remote import RemoteStorage
from stagecoach.data.stores.storage import CacheOptions

CONTENT = os.urandom(300_000)
FILES = {
    "/set/a.tar": CONTENT,
    "/set/manifest.json": b"{}",
    "/set/empty": b"",
    "/set/a b%.tar": b"odd name",
    "/set/": b'<a href="../">up</a><a href="?C=N">sort</a><a href="a.tar">a</a><a href="a%20b%25.tar">b</a>'
    b'<a href="train/">t</a>',
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        server.requests.append((self.path, wanted and wanted.groups(), dict(self.headers)))
        fault = server.faults.pop(0) if server.faults else server.always
        path = self.path.partition("?")[0].replace("%20", " ").replace("%25", "%")
        body = FILES.get(path)
        if body is None:
            return self.answer(404, b"", {})
        if isinstance(fault, int):
            return self.answer(fault, b"no", {})
        if fault == "stall":
            server.ended.wait(20)
            return None
        if fault == "reset":
            self.close_connection = True
            return None
        if fault == "unending":
            return self.never_end()
        if wanted is None or fault == "no ranges":
            headers = {"Content-Type": "text/html"} if path.endswith("/") else {}
            return self.answer(200, body, headers, drop=fault == "drop")
        first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
        if first >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        if fault == "fewer":
            last -= 10
        if fault in ("later", "earlier"):
            first, last = (first + 5, last + 5) if fault == "later" else (first - 5, last - 5)
        headers = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
        if fault == "compressed":
            headers["Content-Encoding"] = "gzip"
        pace = {"trickle": 1, "steady": 20_000}.get(fault)
        return self.answer(206, body[first : last + 1], headers, drop=fault == "drop", pace=pace)

    def never_end(self):
        self.send_response(206)
        self.send_header("Content-Range", "bytes 1000-5999/300000")
        self.end_headers()
        self.close_connection = True
        try:
            while not self.server.ended.is_set():
                self.wfile.write(bytes(1 << 16))
                self.server.sent += 1 << 16
        except OSError:
            pass

    def answer(self, status, body, headers, drop=False, pace=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if pace:
            for start in range(0, len(body), pace):
                self.wfile.write(body[start : start + pace])
                if self.server.ended.wait(0.05):
                    break
        else:
            self.wfile.write(body[: len(body) // 2] if drop else body)
        self.close_connection = drop or pace is not None


@pytest.fixture
def server(monkeypatch):
    """``faults``: one per request to come; ``always``: all requests after; ``requests``: what was asked."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(local_files, "FIRST_DELAY", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.faults, server.always, server.requests, server.ended, server.sent = [], None, [], threading.Event(), 0
    server.url = f"http://127.0.0.1:{server.server_port}/set"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_files_are_measured_read_and_listed(server):
    storage = open_storage(server.url + "/")
    assert storage.size("a.tar") == len(CONTENT)
    assert storage.size("empty") == 0
    assert storage.size("b.tar") is None
    assert storage.exists("a.tar")
    assert storage.read("manifest.json") == b"{}"
    assert storage.read_range("a.tar", 1000, 5000) == CONTENT[1000:6000]
    assert storage.read_range("a.tar", 0, 0) == b""
    assert storage.read_range("a.tar", 0, len(CONTENT), len(CONTENT)) == CONTENT
    assert storage.read("a b%.tar") == b"odd name"
    assert storage.names() == ["a b%.tar", "a.tar"]
    assert storage.describe("a.tar") == f"{server.url}/a.tar"
    assert open_storage(server.url.removesuffix("/set")).child("set").read("manifest.json") == b"{}"


def test_range_is_asked_for_and_compression_declined(server):
    open_storage(server.url).read_range("a.tar", 1000, 5000)
    [(path, wanted, headers)] = server.requests
    assert (path, wanted, headers["Accept-Encoding"]) == ("/set/a.tar", ("1000", "5999"), "identity")


@pytest.mark.parametrize(
    "faults", [[500, 500], [503], [429], ["drop"], ["reset", "reset", "reset"], ["fewer"], ["later", "earlier"]]
)
def test_what_passes_is_tried_again(server, faults):
    server.faults = list(faults)
    assert open_storage(server.url, retries=4).read_range("a.tar", 1000, 5000) == CONTENT[1000:6000]
    assert server.faults == []


def test_outage_is_not_a_missing_file(server):
    server.faults = [500, 500]
    assert open_storage(server.url).size("a.tar") == len(CONTENT)
    server.always = 500
    with pytest.raises(UnreachableError, match="status 500"):
        open_storage(server.url, retries=1).exists("a.tar")


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (500, "status 500"),
        ("drop", "ClientPayloadError"),
        ("reset", "ServerDisconnectedError"),
        ("fewer", "4990 of 5000"),
        ("later", "sent bytes 1005-6004 when asked for 1000-5999"),
        ("earlier", "sent bytes 995-5994 when asked for 1000-5999"),
    ],
)
def test_what_does_not_pass_ends_with_url_attempts_and_cause(server, fault, cause):
    server.always = fault
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=f"{server.url}/a.tar: not read in 3 attempts.*{cause}"):
        open_storage(server.url, retries=2).read_range("a.tar", 1000, 5000)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("fault", ["stall", "trickle"])
def test_server_that_stalls_is_left_after_the_deadline(server, fault):
    server.always = fault
    started = time.monotonic()
    with pytest.raises(
        UnreachableError, match=r"not read in 2 attempts.*no answer in time, less than 64 kB/s of it after 0.3 s"
    ):
        open_storage(server.url, timeout=0.3, retries=1).read_range("a.tar", 1000, 5000)
    assert time.monotonic() - started < 3


def test_slow_but_steady_server_is_waited_for(server):
    server.always = "steady"
    assert open_storage(server.url, timeout=0.3, retries=0).read_range("a.tar", 0, 200_000) == CONTENT[:200_000]


@pytest.mark.parametrize("read", [lambda s: s.read_range("a.tar", 1000, 5000), lambda s: s.read("manifest.json")])
def test_answer_that_never_ends_is_left_where_it_is_too_long(server, monkeypatch, read):
    monkeypatch.setattr(drivers, "SMALL", 100_000)
    server.always = "unending"
    with pytest.raises(UnreachableError, match=r"sent more than the 5000 bytes|more than 100,000 bytes"):
        read(open_storage(server.url, timeout=5, retries=0))
    assert server.sent < 50 << 20  # what the kernel and the client hold of it


def test_server_that_stalls_once_is_asked_again(server):
    server.faults = ["stall"]
    assert open_storage(server.url, timeout=0.3).read_range("a.tar", 1000, 5000) == CONTENT[1000:6000]


def test_unreachable_host_ends(monkeypatch):
    monkeypatch.setattr(local_files, "FIRST_DELAY", 0.01)
    with pytest.raises(UnreachableError, match=r"not read in 2 attempts.*Cannot connect"):
        open_storage("http://127.0.0.1:9/set", timeout=5, retries=1).read("manifest.json")


@pytest.mark.parametrize(
    ("name", "fault", "kind", "sentence"),
    [
        ("b.tar", None, DamagedError, "b.tar: missing"),
        ("a.tar", 403, UnreachableError, "attempt 1 .status 403"),
        ("a.tar", 401, UnreachableError, "attempt 1 .status 401"),
        ("a.tar", "no ranges", UnreachableError, "ignores the Range header"),
        ("a.tar", "compressed", UnreachableError, "in the coding 'gzip'"),
    ],
)
def test_what_cannot_pass_fails_at_once(server, name, fault, kind, sentence):
    server.always = fault
    with pytest.raises(kind, match=sentence):
        open_storage(server.url).read_range(name, 1000, 5000)
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [None, "no ranges"])
def test_file_that_is_shorter_or_replaced_is_damaged(server, fault):
    server.always = fault
    storage = open_storage(server.url)
    with pytest.raises(DamagedError, match=r"a.tar: 300000 bytes, expected 300001 or more"):
        storage.read_range("a.tar", 1, 300_000)
    with pytest.raises(DamagedError, match=r"a.tar: 300000 bytes, expected 299999 as the manifest"):
        storage.read_range("a.tar", 1, 1000, 299_999)
    with pytest.raises(DamagedError, match=r"a.tar: 300000 bytes, expected 401000 or more"):
        storage.read_range("a.tar", 400_000, 1000)


def test_whole_file_for_a_range_is_taken_only_if_it_is_the_range(server):
    server.always = "no ranges"
    assert open_storage(server.url).read_range("a.tar", 0, len(CONTENT)) == CONTENT


def test_signature_and_password_are_sent_but_not_told(server):
    server.always = 403
    url = server.url.replace("http://", "http://user:word@") + "?signature=secret"
    with pytest.raises(UnreachableError) as caught:
        open_storage(url).read("a.tar")
    assert "secret" not in str(caught.value)
    assert "word" not in str(caught.value)
    path, _, headers = server.requests[-1]
    assert path == "/set/a.tar?signature=secret"
    assert headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("fault", [None, "no ranges"])
@pytest.mark.parametrize("faults", [[], [500], ["drop"]])
def test_download_gives_the_whole_file(server, monkeypatch, tmp_path, fault, faults):
    monkeypatch.setattr(remote, "PART", 7_000)
    server.always, server.faults = fault, list(faults)
    with open(tmp_path / "copy", "w+b", buffering=0) as handle:
        open_storage(server.url).download("a.tar", handle, len(CONTENT))
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", [None, "no ranges", 403])
def test_download_that_fails_says_so(server, monkeypatch, tmp_path, fault):
    monkeypatch.setattr(remote, "PART", 7_000)
    server.always = fault
    with open(tmp_path / "copy", "w+b", buffering=0) as handle, pytest.raises(ValueError, match=r"a.tar: "):
        open_storage(server.url).download("a.tar", handle, len(CONTENT) + 1)


def test_server_without_ranges_is_read_through_the_cache(server, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "PART", 7_000)
    server.always = "no ranges"
    storage = open_storage(server.url, CacheOptions(tmp_path, 10**6))
    for offset in (1000, 0, 299_000):
        assert storage.read_range("a.tar", offset, 1000, len(CONTENT)) == CONTENT[offset : offset + 1000]
    whole = [wanted for _, wanted, _ in server.requests if wanted is None]
    assert len(whole) == 1


def test_threads_share_a_remote_storage(server):
    storage = open_storage(server.url)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: storage.read_range("a.tar", n, 1000), range(0, 100_000, 1000)))
    assert b"".join(found) == CONTENT[:100_000]


def _read_in_child(storage, queue):
    queue.put(storage.read_range("a.tar", 5, 1000))


def test_forked_child_reads_and_its_parent_goes_on(server):
    storage = open_storage(server.url)
    assert storage.read_range("a.tar", 0, 1000) == CONTENT[:1000]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(storage, queue))
    child.start()
    assert queue.get(timeout=20) == CONTENT[5:1005]
    child.join(20)
    assert child.exitcode == 0
    assert storage.read_range("a.tar", 9, 1000) == CONTENT[9:1009]


FORK = """
import os, sys
from stagecoach.data.stores.opening import open_storage
storage = open_storage(sys.argv[1], timeout=5, retries=0)
storage.read_range("a.tar", 0, 10)
pid = os.fork()
if pid == 0:
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(len(storage.read_range("a.tar", 0, 10)))
"""


def test_child_that_ends_leaves_its_parents_connections_alone(server):
    found = subprocess.run(
        [sys.executable, "-c", FORK, server.url],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[3],
    )
    assert (found.stdout, found.stderr) == ("10\n", "")


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/shards/a.tar", CONTENT)
    fs.pipe_file("/shards/train/b.tar", b"b")
    yield fs
    fs.rm("/shards", recursive=True)


def test_other_drivers_are_measured_read_and_listed(memory, tmp_path):
    storage = open_storage("memory://shards")
    assert storage.names() == ["a.tar"]
    assert storage.size("a.tar") == len(CONTENT)
    assert storage.size("b.tar") is None
    assert storage.size("train") is None
    assert storage.read_range("a.tar", 1000, 5000) == CONTENT[1000:6000]
    assert storage.child("train").read("b.tar") == b"b"
    with open(tmp_path / "copy", "w+b", buffering=0) as handle:
        storage.download("a.tar", handle, len(CONTENT))
    assert (tmp_path / "copy").read_bytes() == CONTENT
    memory.pipe_file("/shards/a.tar", b"replaced")
    assert storage.read_range("a.tar", 0, 8) == b"replaced"  # nothing is remembered
    with pytest.raises(DamagedError, match=r"a.tar: 8 bytes, expected 5000 or more"):
        storage.read_range("a.tar", 0, 5000)
    with pytest.raises(DamagedError, match=r"memory://shards/b.tar: missing"):
        storage.read("b.tar")


def test_driver_without_deadlines_of_its_own_is_left_after_ours(memory, monkeypatch):
    monkeypatch.setattr(local_files, "FIRST_DELAY", 0.01)
    ended = threading.Event()
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: ended.wait(20))
    with pytest.raises(
        UnreachableError, match=r"not read in 2 attempts.*no answer in time, less than 64 kB/s of it after 0.1 s"
    ):
        RemoteStorage("memory://shards", 0.1, 1).read_range("a.tar", 0, 10)
    ended.set()


def test_own_mistake_in_a_driver_is_not_repeated(memory, monkeypatch):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "cat_file", fail)
    with pytest.raises(UnreachableError, match=r"attempt 1 .PermissionError: Access Denied"):
        open_storage("memory://shards").read_range("a.tar", 0, 10)
    assert len(calls) == 1


def test_global_random_state_is_left_alone(server):
    random.seed(3)
    state = random.getstate()
    server.faults = [500]
    open_storage(server.url).read_range("a.tar", 0, 10)
    assert random.getstate() == state
