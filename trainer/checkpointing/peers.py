"""What those who write the parts of a checkpoint say to each other, over connections of their own to rank 0's.

They may be the ranks or the writers behind them: what they agree on never mixes with the messages of training, and
needs no torch. Only who shows the token that the ranks were given is let in; what follows is as open to the network as
the messages of NCCL and gloo.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import psutil

from stagecoach.trainer.settings import FirstRankError, PeerLostError

MEET_SECONDS = 300.0
TIMEOUT = 2 * 3600.0
"""Seconds for one message: others wait while a large file is written to a slow disk."""
GREETING_SECONDS = 10.0
OTHERS = 64
"""Connections of strangers that may wait besides those of the ranks."""
HERE = b"+"
PIECE = 1 << 24
"""Bytes of values in one call."""


@dataclass(frozen=True)
class Invitation:
    """Where rank 0 listens, by all addresses that it knows of itself, and the token to show there."""

    addresses: list[str] = field(default_factory=list)
    port: int = 0
    token: str = ""


def invite(size: int) -> tuple[Invitation, socket.socket | None]:
    """On rank 0: a socket that listens for ``size`` ranks, and how it is reached."""
    if size == 1:
        return Invitation(), None
    try:
        listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=size + OTHERS)
    except (OSError, ValueError):  # no IPv6 here
        listener = socket.create_server(("", 0), backlog=size + OTHERS)
    named = os.environ.get("GLOO_SOCKET_IFNAME")
    found = [one.address for one in psutil.net_if_addrs().get(named or "", []) if one.family == socket.AF_INET]
    found += [os.environ["MASTER_ADDR"], socket.gethostname()]
    return Invitation(found, listener.getsockname()[1], os.urandom(32).hex()), listener


class Peers:
    """The connections of one rank: to all others on rank 0, to rank 0 elsewhere."""

    def __init__(self, rank: int, size: int, links: dict[int, socket.socket]) -> None:
        self.rank, self.size, self.links = rank, size, links

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def close(self) -> None:
        for link in self.links.values():
            link.close()

    def gather(self, value: Any) -> list[Any]:
        """``value`` of each rank (of JSON) on rank 0, nothing elsewhere."""
        if not self.is_first:
            self._say(0, value)
            return []
        return [value, *(self._hear(rank) for rank in range(1, self.size))]

    def share(self, value: Any) -> Any:
        """``value`` of rank 0 (of JSON) on every rank."""
        if not self.is_first:
            return self._hear(0)
        for rank in range(1, self.size):
            self._say(rank, value)
        return value

    def each(self, function: Callable[..., Any], *args: Any) -> None:
        """Run ``function(*args)`` on every rank. Where one fails all do: it with its own error, the others with a
        ``FirstRankError``."""
        failure = None
        try:
            function(*args)
        except PeerLostError:  # nothing can be agreed on any more
            raise
        except Exception as error:
            failure = error
        messages = self.share(self.gather(None if failure is None else str(failure)))
        for rank, message in enumerate(messages):
            if message is not None:
                if rank == self.rank and failure is not None:
                    raise failure
                raise FirstRankError(f"rank {rank}: {message}")

    def first(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run ``function(*args)`` on rank 0 alone and return its result (of JSON) on all; its failure is raised on
        all."""
        result, failure = None, None
        if self.is_first:
            try:
                result = function(*args)
            except Exception as error:
                failure = error
        result, message = self.share((result, failure and f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        if message is not None:
            raise FirstRankError(message)
        return result

    def send(self, values: memoryview) -> None:
        """Send bytes to rank 0."""
        for at in range(0, len(values), PIECE):
            self._call(0, self.links[0].sendall, values[at : at + PIECE])

    def receive(self, rank: int, into: memoryview) -> None:
        """Fill ``into`` with what a rank sends."""
        done = 0
        while done < len(into):
            got = self._call(rank, self.links[rank].recv_into, into[done:])
            if not got:
                raise _lost(rank, "it has closed the connection")
            done += got

    def _say(self, rank: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self._call(rank, self.links[rank].sendall, struct.pack("<Q", len(content)) + content)

    def _hear(self, rank: int) -> Any:
        head = bytearray(8)
        self.receive(rank, memoryview(head))
        content = bytearray(struct.unpack("<Q", head)[0])
        self.receive(rank, memoryview(content))
        return json.loads(content)

    def _call(self, rank: int, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except OSError as error:
            raise _lost(rank, str(error.strerror or error)) from error


def meet(rank: int, size: int, invitation: Invitation, listener: socket.socket | None) -> Peers:
    """Connect with the others, who do the same; ``listener`` is there on rank 0 and is closed.

    Raises ``PeerLostError`` where that does not succeed within ``MEET_SECONDS``.
    """
    if size == 1:
        return Peers(0, 1, {})
    end = time.monotonic() + MEET_SECONDS
    if rank:
        return Peers(rank, size, {0: _reach(rank, invitation, end)})
    assert listener is not None
    links: dict[int, socket.socket] = {}
    with listener:
        while len(links) < size - 1:
            missing = next(other for other in range(1, size) if other not in links)
            listener.settimeout(max(0.1, end - time.monotonic()))
            try:
                link, _ = listener.accept()
            except OSError as error:
                reason = f"of {size - 1} other ranks {len(links)} came to {invitation.addresses}"
                raise _lost(missing, f"{reason} within {MEET_SECONDS:g} s, to write checkpoints with") from error
            # Whoever does not know the token is some other program.
            with suppress(OSError, ValueError):
                who, shown = _read(link, 72).split(b":")
                if hmac.compare_digest(shown, invitation.token.encode()):
                    link.sendall(_answer(invitation.token))
                    # One that has waited for this too long is gone and comes again.
                    if _read(link, len(HERE)) == HERE:
                        links[int(who)] = _kept(link)
                        continue
            link.close()
    return Peers(0, size, links)


def _reach(rank: int, invitation: Invitation, end: float) -> socket.socket:
    reason = ""
    while time.monotonic() < end:
        for address in invitation.addresses:
            try:
                link = socket.create_connection((address, invitation.port), GREETING_SECONDS)
            except OSError as error:
                reason = f"{address}: {error}"
                continue
            with suppress(OSError):
                link.sendall(f"{rank:>7}:{invitation.token}".encode())
                if hmac.compare_digest(_read(link, 32), _answer(invitation.token)):
                    link.sendall(HERE)
                    return _kept(link)
            reason = f"{address}: something else answers"
            link.close()
        time.sleep(0.2)
    raise _lost(0, f"{socket.gethostname()} cannot reach its port {invitation.port} to write checkpoints ({reason})")


def _read(link: socket.socket, count: int) -> bytes:
    found, end = b"", time.monotonic() + GREETING_SECONDS
    while len(found) < count:
        link.settimeout(max(0.001, end - time.monotonic()))
        more = link.recv(count - len(found))
        if not more:
            break
        found += more
    return found


def _answer(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _kept(link: socket.socket) -> socket.socket:
    """For long waits, in which a machine that went down is found out within two minutes."""
    link.settimeout(TIMEOUT)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return link


def _lost(rank: int, reason: str) -> PeerLostError:
    return PeerLostError(f"rank {rank}, which writes its part of each checkpoint, is gone or out of reach: {reason}")
