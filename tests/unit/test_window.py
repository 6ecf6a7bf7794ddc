# SPDX-License-Identifier: Apache-2.0
"""The agent's view of the window, byte for byte."""

import os
import resource
import struct
import time

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


class Recorded:
    """Writes local rank 2's flight recorder, as the core does."""

    base = 8192 + 2 * 65536

    def __init__(self, made, count):
        self.fd = made.fd
        os.pwrite(self.fd, struct.pack("<QQQqII", count, 1, 0, 0, 1, 2), self.base)
        os.pwrite(self.fd, b"a.py:1 in f", self.base + 64 + 256 * 64 + 184)

    def put(self, number, seq, entered=5, done=9, comm=0, site=1, peer=-1, kind=0, form=0, mode=0):
        record = struct.pack("<QQQQIIIiBBBBB", number, 8, entered, done, seq, comm, site, peer, kind, 0, 0, form, mode)
        os.pwrite(self.fd, record, self.base + 64 + 64 * (number % 256))


def test_last_call(made):
    assert made.last_call(2) is None
    recorded = Recorded(made, 300)
    recorded.put(300, seq=299, comm=2)
    assert str(made.last_call(2)) == "barrier #299 of communicator 2 at a.py:1 in f"
    recorded.put(44, seq=43)
    assert made.last_call(2) is None, "a record that is being rewritten"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"seq": 7, "kind": 1, "form": 9}, "broadcast_object #7 at a.py:1 in f"),
        ({"seq": 0, "kind": 16, "peer": 3, "site": 0}, "send to rank 3"),
        ({"seq": 0, "kind": 17, "peer": 3}, "recv from rank 3 at a.py:1 in f"),
        ({"seq": 0, "kind": 17}, "recv from any rank at a.py:1 in f"),
    ],
)
def test_a_call_is_named_as_the_user_wrote_it(made, record, text):
    Recorded(made, 1).put(1, **record)
    assert str(made.last_call(2)) == text


def test_open_call_is_the_oldest_that_is_not_over(made):
    assert made.open_call(2) is None
    recorded = Recorded(made, 300)
    recorded.put(44, seq=44, done=0)  # 256 calls ago: its place is about to be written again
    recorded.put(298, seq=298)
    assert made.open_call(2) is None
    recorded.put(299, seq=299, done=0)
    recorded.put(300, seq=300, done=0)
    assert str(made.open_call(2)) == "barrier #299 at a.py:1 in f"


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


def test_a_call_that_has_not_waited_yet_was_entered_just_now(made):
    recorded = Recorded(made, 2)
    recorded.put(
        1, seq=1, entered=0, kind=3
    )  # its end is being written: the time of entering comes first, and was read
    recorded.put(2, seq=2, entered=0, done=0)
    before = time.time()
    assert before <= made.waiting(2).entered_s <= time.time()
    assert made.pace(2) is None


def test_waiting_is_what_the_rank_can_do_nothing_else_before(made):
    recorded = Recorded(made, 3)
    recorded.put(1, seq=1, done=0, mode=window.MODE_STARTED)
    assert made.waiting(2) is None and made.open_call(2).seq == 1
    recorded.put(2, seq=2, done=0)
    recorded.put(3, seq=1, done=0, mode=window.MODE_WAIT)
    assert made.waiting(2).seq == 2 and made.open_call(2).seq == 2
    recorded.put(2, seq=2)
    assert made.waiting(2).seq == 1 and made.waiting(2).number == 3


def test_newest_calls_are_those_entered_not_those_waited_for(made):
    assert made.newest_calls(2) == {}
    recorded = Recorded(made, 4)
    recorded.put(1, seq=7, comm=1)
    recorded.put(2, seq=3)
    recorded.put(3, seq=0, kind=17, comm=5)
    recorded.put(4, seq=9, done=0, mode=window.MODE_WAIT)
    assert made.newest_calls(2) == {0: 3, 1: 7}
