# SPDX-License-Identifier: Apache-2.0
"""`pm.store` as a process uses it: the table of its own under plain python, and its end of the socket."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

import pmrun as pm
from pmrun import env, store, store_wire, window
from pmrun.store_client import LineCalls, OwnCalls
from pmrun.store_wire import Cancel, Done, Frames, GangEnded, Get, Open, Opened, Refused, Set, Values


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> OwnCalls:
    """A table for this test alone."""
    calls = OwnCalls()
    monkeypatch.setattr(store, "_calls", calls)
    return calls


def test_the_operations() -> None:
    store.set("a", b"1")
    store.set("b", "zwei €")
    store.set_many({"c": bytearray(b"3"), "d": memoryview(b"4")})
    assert store.get("b").decode() == "zwei €"
    assert store.get_many(["d", "a", "c"]) == [b"4", b"1", b"3"]
    assert store.get_many([]) == []
    store.wait("a")
    store.wait(["a", "b"], timeout=0)
    assert (store.add("n"), store.add("n", 41), store.get("n")) == (1, 42, b"42")
    assert store.compare_and_set("a", "0", "2") == (False, b"1")
    assert store.compare_and_set("a", "1", "2").swapped
    assert store.compare_and_set("a", b"2", None) == (True, None)
    assert (store.delete("a"), store.delete("b"), store.keys(), store.keys("d")) == (
        False,
        True,
        ["c", "d", "n"],
        ["d"],
    )
    assert store.data_key() == b""


def test_more_than_one_frame_holds() -> None:
    items = {f"{i:04}" + "k" * 500: bytes([i % 256]) * 3000 for i in range(5000)}
    store.set_many(items)
    assert store.keys() == sorted(items)
    store.wait(items, timeout=0)
    assert store.get_many(items) == list(items.values())


def test_a_thread_waits_for_another() -> None:
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(store.get("late", timeout=math.inf)))
    thread.start()
    store.set("late", b"x")
    thread.join(10)
    assert got == [b"x"]


def test_a_timeout() -> None:
    with pytest.raises(pm.StoreTimeout, match=r"^nobody set 'b', 'c' within 0\.01 s$") as caught:
        store.get_many(["b", "c"], timeout=0.01)
    assert caught.value.keys == ("b", "c")
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(pm.StoreTimeout, match="nobody set 'b' yet"):
        store.get("b", timeout=0)


def test_the_text_of_a_timeout(own: OwnCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = store_wire.TimedOut(1, ("a", "b"), 5, (2, 3), (1,))
    monkeypatch.setattr(own, "ask", lambda *_, **__: reply)
    with pytest.raises(pm.StoreTimeout) as caught:
        store.get("a", timeout=2)
    told = "nobody set 'a', 'b' and 3 more within 2 s; ranks 2, 3 have not used the store yet; rank 1 has ended"
    assert str(caught.value) == told
    assert (caught.value.absent, caught.value.ended) == ((2, 3), (1,))


@pytest.mark.parametrize(
    ("state", "rank", "kind"),
    [
        (window.ABORT_RANK_FAILED, 3, pm.RankFailed), (window.ABORT_RANK_FAILED, -1, pm.GangStopped),
        (window.ABORT_MISMATCH, 3, pm.CollectiveMismatch), (window.ABORT_STALLED, 3, pm.CollectiveTimeout),
        (window.ABORT_STOPPED, -1, pm.GangStopped),
    ],
)  # fmt: skip
def test_the_end_of_the_gang(
    own: OwnCalls, monkeypatch: pytest.MonkeyPatch, state: int, rank: int, kind: type[Exception]
) -> None:
    monkeypatch.setattr(own, "ask", lambda *_, **__: GangEnded(1, state, rank, "n", "why"))
    with pytest.raises(kind, match="why"):
        store.set("a", b"")


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: store.set("", b""), pm.UsageError, "a key of 0 bytes"),
        (lambda: store.get("x" * 1025), pm.UsageError, "it must have 1 to 1024"),
        (lambda: store.get("\ud800"), pm.UsageError, "no Unicode text"),
        (lambda: store.get(5), TypeError, "a str, not int"),
        (lambda: store.set("a", 5), TypeError, "bytes or str, not int"),
        (lambda: store.set("a", bytes((1 << 20) + 1)), pm.UsageError, "'a': a value of 1048577 bytes, the limit"),
        (lambda: store.get("a", timeout=-1), pm.UsageError, "timeout=-1"),
        (lambda: store.get("a", timeout=math.nan), pm.UsageError, "timeout=nan"),
        (lambda: store.add("a", 1 << 63), pm.UsageError, "64 bits"),
        (lambda: (store.set("a", "one"), store.add("a")), pm.UsageError, "no number to add to"),
    ],
)  # fmt: skip
def test_mistakes(call: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_full_store() -> None:
    for i in range(63):
        store.set(str(i), bytes(1 << 20))
    with pytest.raises(pm.StoreError, match="the store is full"):
        store.set("one more", bytes(1 << 20))


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({env.STORE_FD: "999"}, "PMRUN_STORE_FD=999"),
        ({env.STORE_FD: "x"}, "PMRUN_STORE_FD='x'"),
        ({env.WORLD_SIZE: "4"}, "no store came with it"),
    ],
)
def test_an_environment_that_is_wrong(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str) -> None:
    monkeypatch.setattr(store, "_calls", None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(pm.UsageError, match=words):
        store.get("a")


def test_the_default_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.COLLECTIVE_TIMEOUT, "0.01")
    with pytest.raises(pm.StoreTimeout, match=r"within 0\.01 s"):
        store.get("a")
    monkeypatch.setenv(env.COLLECTIVE_TIMEOUT, "soon")
    with pytest.raises(pm.UsageError, match="PMRUN_COLLECTIVE_TIMEOUT='soon'"):
        store.get("a")


def test_a_forked_child_is_refused() -> None:
    store.set("a", b"")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            store.get("a")
        except pm.ForkedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- over a socket --------------------------------------------------------------------------------------------


class Peer:
    """The other end of a line, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(10)
        self.frames = Frames()
        self.waiting: list[store_wire.Request] = []

    def read(self) -> store_wire.Request:
        while not self.waiting:
            data = self.sock.recv(1 << 20)
            assert data
            self.waiting += [word for word, _ in self.frames.feed(data, store_wire.request_decoder)]
        return self.waiting.pop(0)

    def send(self, *words: store_wire.Reply) -> None:
        self.sock.sendall(b"".join(map(store_wire.frame, words)))


@pytest.fixture
def line() -> Iterator[tuple[LineCalls, Peer]]:
    ours, theirs = socket.socketpair()
    peer = Peer(theirs)
    opening = threading.Thread(target=lambda: peer.send(Opened(peer.read().number, store_wire.VERSION, b"key")))
    opening.start()
    calls = LineCalls(ours)
    opening.join()
    yield calls, peer
    calls.close()
    theirs.close()


def asking(calls: LineCalls, *request: object) -> tuple[threading.Thread, list]:
    """A thread that asks, and what came of it."""
    result: list = []

    def ask() -> None:
        try:
            result.append(calls.ask(*request, within_s=60))
        except pm.PmrunError as error:
            result.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, result


def test_replies_find_their_threads(line: tuple[LineCalls, Peer]) -> None:
    calls, peer = line
    assert calls.data_key == b"key"
    asked = [asking(calls, Get, (f"k{i}",), 9.0, True) for i in range(8)]
    requests = [peer.read() for _ in asked]
    for request in reversed(requests):
        peer.send(Values(request.number, (request.keys[0].encode(),)))
    for i, (thread, result) in enumerate(asked):
        thread.join(10)
        assert [reply.values for reply in result] == [(f"k{i}".encode(),)]


def test_a_large_request_while_the_other_side_writes(line: tuple[LineCalls, Peer]) -> None:
    """Each side's buffer is full: the one that sends must read."""
    calls, peer = line
    thread, result = asking(calls, Set, (("a", bytes(1 << 20)),))
    stale = store_wire.frame(Values(7, (bytes(1 << 20),)))
    peer.sock.sendall(stale * 3)
    request = peer.read()
    assert isinstance(request, Set) and len(request.items[0][1]) == 1 << 20
    peer.send(Done(request.number, True))
    thread.join(10)
    assert result == [Done(request.number, True)]


def test_the_other_side_closes(line: tuple[LineCalls, Peer]) -> None:
    calls, peer = line
    asked = [asking(calls, Get, ("k",), 9.0, True) for _ in range(3)]
    for _ in asked:
        peer.read()
    peer.send(Refused(-1, "why it is closed", False))
    peer.sock.shutdown(socket.SHUT_RDWR)
    for thread, result in asked:
        thread.join(10)
        assert isinstance(result[0], pm.StoreError)
    with pytest.raises(pm.StoreError, match="why it is closed"):
        calls.ask(Get, ("k",), 9.0, True)


def test_garbage_from_the_other_side(line: tuple[LineCalls, Peer]) -> None:
    calls, peer = line
    thread, result = asking(calls, Get, ("k",), 9.0, True)
    peer.read()
    peer.sock.sendall(b"\xff" * 100)
    thread.join(10)
    assert isinstance(result[0], pm.StoreError) and "cannot be used any more" in str(result[0])


def test_ctrl_c_gives_a_request_up(line: tuple[LineCalls, Peer]) -> None:
    calls, peer = line
    main = threading.get_ident()

    def interrupt() -> None:
        peer.read()
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        calls.ask(Get, ("k",), 9.0, True, within_s=60)
    thread.join(10)
    cancelled = peer.read()
    assert isinstance(cancelled, Cancel)
    peer.send(Values(cancelled.number, (b"late",)))
    thread, result = asking(calls, Get, ("k",), 9.0, True)
    request = peer.read()
    assert isinstance(request, Get)
    peer.send(Values(request.number, (b"good",)))
    thread.join(10)
    assert result == [Values(request.number, (b"good",))]


def test_another_version_on_the_other_side() -> None:
    ours, theirs = socket.socketpair()
    peer = Peer(theirs)

    def refuse() -> None:
        request = peer.read()
        assert isinstance(request, Open)
        peer.send(Refused(request.number, "install one version", False))

    thread = threading.Thread(target=refuse)
    thread.start()
    with ours, theirs:
        with pytest.raises(pm.StoreError, match="install one version"):
            LineCalls(ours)
        thread.join()
