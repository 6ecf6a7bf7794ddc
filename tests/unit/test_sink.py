# SPDX-License-Identifier: Apache-2.0
"""Writing without waiting, and without touching the flags of a descriptor that others share."""

import fcntl
import os
import socket

import pytest

from pmrun.launcher import sink
from pmrun.launcher.sink import Sink


def fill(item):
    total = 0
    while count := item.write(b"x" * 65536):
        total += count
    return total


@pytest.mark.parametrize("refused", [False, True])
def test_full_pipe_never_waits(monkeypatch, refused):
    read, write = os.pipe()
    if refused:
        monkeypatch.setattr(sink.os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
    item = Sink(write)
    assert not item.closed
    total = fill(item)
    assert total >= 4096
    assert not fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK
    got = 0
    while got < total:
        got += len(os.read(read, total - got))
    assert item.write(b"more") == 4
    os.close(read)
    assert item.write(b"nobody") == 6
    assert item.closed and item.problem == ""
    item.close()
    os.close(write)


def test_socket():
    ours, theirs = socket.socketpair()
    item = Sink(ours.fileno())
    assert fill(item) > 0
    assert ours.getblocking()
    theirs.close()
    item.write(b"nobody")
    assert item.closed
    item.close()
    ours.close()


def test_file_keeps_its_offset(tmp_path):
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before ")
    item = Sink(fd)
    assert item.write(b"inside ") == 7
    os.write(fd, b"after")
    item.close()
    os.close(fd)
    assert (tmp_path / "log").read_text() == "before inside after"


def test_full_disk_is_a_problem_not_an_exception():
    fd = os.open("/dev/full", os.O_WRONLY)
    item = Sink(fd)
    assert item.write(b"x") == 1
    assert item.closed and item.problem == "No space left on device"
    os.close(fd)


def test_closed_descriptor():
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    item = Sink(write)
    assert item.closed
    assert item.write(b"dropped") == 7


def test_identity_tells_shared_destinations():
    read, write = os.pipe()
    copy = os.dup(write)
    sinks = [Sink(fd) for fd in (write, copy, 2)]
    assert sinks[0].identity == sinks[1].identity != sinks[2].identity
    for item in sinks:
        item.close()
    for fd in (read, write, copy):
        os.close(fd)
