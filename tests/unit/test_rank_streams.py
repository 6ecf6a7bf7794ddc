# SPDX-License-Identifier: Apache-2.0
"""Output under credit and input with its queue, over real pipes."""

import os

import pytest

from pmrun import wire
from pmrun.launcher.rank_streams import COLLECT_BYTES, TAIL_BYTES, InputStream, OutputStream


@pytest.fixture
def stream():
    read, write = os.pipe()
    os.set_blocking(read, False)
    sent = []
    item = OutputStream(3, wire.ERR, read, 10, sent.append)
    yield item, write, sent
    item.close()


def texts(sent):
    return [message.data for message in sent]


def test_reads_only_as_far_as_its_credit(stream):
    item, write, sent = stream
    os.write(write, b"0123456789abcdef")
    assert item.read()
    assert texts(sent) == [b"0123456789"] and not item.readable
    item.add_credit(4)
    assert item.readable and item.read()
    assert texts(sent) == [b"0123456789", b"abcd"]
    os.close(write)


def test_collects_without_credit_and_sends_later(stream):
    item, write, sent = stream
    os.write(write, b"0123456789abcdef")
    os.close(write)
    assert not item.collect()
    assert item.tail() == b"0123456789abcdef"
    assert texts(sent) == [b"0123456789"] and not item.done
    item.add_credit(3)
    assert texts(sent) == [b"0123456789", b"abc"] and not item.done
    item.add_credit(3)
    assert texts(sent) == [b"0123456789", b"abc", b"def", b""] and item.done


def test_end_is_sent_once(stream):
    item, write, sent = stream
    os.close(write)
    assert not item.read()
    item.close()
    assert sent == [wire.Output(3, wire.ERR, b"")]


def test_a_writer_that_goes_on_does_not_hold_up_the_collection():
    zero = os.open("/dev/zero", os.O_RDONLY)
    sent = []
    item = OutputStream(0, wire.OUT, zero, 0, sent.append)
    assert item.collect()
    assert len(item._pending) == COLLECT_BYTES
    item.close()


def test_tail_is_bounded(stream):
    item, write, _ = stream
    item.add_credit(1 << 30)
    for i in range(40):
        os.write(write, b"%02d" % i * 4096)
        assert item.read()
    assert len(item.tail()) == TAIL_BYTES[wire.ERR]
    assert item.tail().endswith(b"39" * 4096)
    os.close(write)


def test_input_queues_and_ends():
    read, write = os.pipe()
    os.set_blocking(write, False)
    item = InputStream(write)
    data = os.urandom(300_000)
    item.feed(data)
    item.feed(b"")
    assert item.pending and item.taken < len(data)
    got = b""
    while len(got) < len(data):
        got += os.read(read, 65536)
        item.write()
    assert got == data and item.taken == len(data)
    assert item.fd == -1 and os.read(read, 1) == b""
    os.close(read)


def test_input_that_nobody_reads_is_dropped():
    read, write = os.pipe()
    os.set_blocking(write, False)
    item = InputStream(write)
    os.close(read)
    item.feed(b"x" * 10)
    assert item.fd == -1 and not item.pending and item.taken == 0
    item.feed(b"more")
    item.close()
