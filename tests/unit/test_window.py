# SPDX-License-Identifier: Apache-2.0
"""The agent's view of the window, byte for byte."""

import os
import resource
import struct

import pytest

from pmrun import window


@pytest.fixture
def made():
    item = window.Window(8, 4, 4, 3, 2 << 20)
    yield item
    item.close()


def test_header(made):
    assert os.fstat(made.fd).st_size == 8192 + 4 * 65536
    assert os.pread(made.fd, 8, 0) == b"PMRWIN01"
    assert struct.unpack_from("<6I", os.pread(made.fd, 40, 0), 8) == (1, 4, 8, 4, 3, 0)
    assert struct.unpack("<Q", os.pread(made.fd, 8, 32)) == (2 << 20,)
    assert not os.get_inheritable(made.fd)


def test_first_abort_stays(made):
    assert made.read_abort() is None
    assert made.write_abort(window.ABORT_RANK_FAILED, 5, "node-b", "exit code 3")
    assert not made.write_abort(window.ABORT_STOPPED, -1, "", "too late")
    assert made.read_abort() == window.AbortRecord(window.ABORT_RANK_FAILED, 5, "node-b", "exit code 3")
    assert struct.unpack("<IIi", os.pread(made.fd, 12, 64)) == (1, 1, 5)


def test_claimed_but_unwritten_abort_is_left_alone(made):
    os.pwrite(made.fd, struct.pack("<I", 1), 64)
    assert not made.write_abort(window.ABORT_STOPPED, -1, "", "x")
    assert made.read_abort() is None


def test_long_texts_are_cut_between_characters(made):
    made.write_abort(1, 0, "ä" * 100, "one\nline " + "€" * 1000)
    record = made.read_abort()
    assert record.node == "ä" * 31
    assert record.text.startswith("one line €") and len(record.text.encode()) <= 767
    assert "\ufffd" not in record.text


def test_departures(made):
    made.mark_departed(0, failed=False)
    made.mark_departed(3, failed=True)
    assert struct.unpack("<I", os.pread(made.fd, 4, 1024)) == (2,)
    assert struct.unpack("<4I", os.pread(made.fd, 16, 1088)) == (3, 0, 0, 4)
    assert [made.rank_state(rank) for rank in range(4)] == [3, 0, 0, 4]


def test_last_call(made):
    assert made.last_call(2) is None
    base = 8192 + 2 * 65536
    os.pwrite(made.fd, struct.pack("<QQQqII", 300, 1, 0, 0, 1, 2), base)
    os.pwrite(made.fd, b"a.py:1 in f", base + 64 + 256 * 64 + 184)
    record = struct.pack("<QQQQIIIiBBB", 300, 8, 5, 9, 299, 2, 1, -1, 0, 0, 0)
    os.pwrite(made.fd, record, base + 64 + 64 * (300 % 256))
    assert str(made.last_call(2)) == "barrier #299 of communicator 2 at a.py:1 in f"
    os.pwrite(made.fd, struct.pack("<Q", 44), base + 64 + 64 * (300 % 256))
    assert made.last_call(2) is None, "a record that is being rewritten"


def test_heap_is_whole_huge_pages_and_bounded(monkeypatch):
    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    limits = {resource.RLIMIT_AS: infinite, resource.RLIMIT_FSIZE: infinite}
    monkeypatch.setattr(window.resource, "getrlimit", lambda which: limits[which])
    assert window.heap_bytes(1, 8) == 2 << 20
    assert window.heap_bytes((2 << 20) + 1, 8) == 4 << 20
    assert window.heap_bytes(1 << 50, 1024) == 1 << 35
    limits[resource.RLIMIT_AS] = (8 << 30, 8 << 30)
    assert window.heap_bytes(1 << 40, 8) == 512 << 20
    limits[resource.RLIMIT_AS] = (1 << 20, 1 << 20)
    assert window.heap_bytes(1 << 40, 8) == 2 << 20
