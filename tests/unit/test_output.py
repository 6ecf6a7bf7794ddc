# SPDX-License-Identifier: Apache-2.0
"""The weaver: lines whole, bytes kept, prompts on time, long lines in pieces, all with a scripted clock."""

import random

import pytest

from pmrun.launcher.output import BLOCK_BYTES, BUSY_PROMPT_S, PROMPT_S, WHOLE_LINE_BYTES, Tagger, Weaver

CLOCK = "12:00:00.000"


def weaver(world_size=4, tag=True, timestamp=False, colour=False, piece_bytes=1000):
    return Weaver(Tagger(world_size, tag, timestamp, colour), piece_bytes)


def take_all(w, now):
    shown = b""
    while (taken := w.take(now, CLOCK)) is not None:
        shown += taken[0]
    return shown


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, b"[2] "),
        ({"world_size": 100}, b"[ 2] "),
        ({"tag": False}, b""),
        ({"timestamp": True}, b"12:00:00.000 [2] "),
        ({"tag": False, "timestamp": True}, b"12:00:00.000 "),
        ({"colour": True}, b"\x1b[33m[2] \x1b[0m"),
    ],
)
def test_prefixes(options, prefix):
    w = weaver(**options)
    w.feed((2, 1), b"a\n\nb\n", 0.0)
    assert take_all(w, 0.0) == prefix + b"a\n" + prefix + b"\n" + prefix + b"b\n"
    assert w.empty()


def test_lines_wait_for_their_end():
    w = weaver()
    w.feed((0, 1), b"hel", 0.0)
    assert w.take(0.0, CLOCK) is None
    assert w.deadline() == PROMPT_S
    w.feed((0, 1), b"lo\nwor", 0.01)
    assert take_all(w, 0.01) == b"[0] hello\n"
    assert w.deadline() == 0.01 + PROMPT_S


def test_prompt_is_shown_and_goes_on_in_its_line():
    w = weaver()
    w.feed((0, 1), b"name? ", 0.0)
    assert take_all(w, PROMPT_S) == b"[0] name? "
    w.feed((0, 1), b"ann", 5.0)
    assert take_all(w, 5.0) == b"ann"
    w.feed((0, 1), b"\nnext\n", 6.0)
    assert take_all(w, 6.0) == b"\n[0] next\n"


def test_another_stream_breaks_an_unfinished_line():
    w = weaver()
    w.feed((0, 1), b"name? ", 0.0)
    assert take_all(w, PROMPT_S) == b"[0] name? "
    w.feed((1, 1), b"busy\n", 0.2)
    assert take_all(w, 0.2) == b"\n[1] busy\n"
    w.feed((0, 1), b"ann\n", 0.3)
    assert take_all(w, 0.3) == b"[0] ann\n"


def test_newline_that_comes_late_is_not_shown_twice():
    w = weaver()
    w.feed((0, 1), b"step 1", 0.0)
    assert take_all(w, PROMPT_S) == b"[0] step 1"
    w.feed((1, 1), b"busy\n", 0.2)
    assert take_all(w, 0.2) == b"\n[1] busy\n"
    w.feed((0, 1), b"\nstep 2\n\n", 0.3)
    assert take_all(w, 0.3) == b"[0] step 2\n[0] \n"
    assert w.empty()


def test_an_unfinished_line_does_not_go_on_in_the_next_attempt():
    w = weaver()
    w.feed((0, 1), b"step 1", 0.0)
    assert take_all(w, PROMPT_S) == b"[0] step 1"
    w.feed((0, 1), b"", 0.2)
    w.next_attempt()
    w.feed((0, 1), b"begin\n", 0.3)
    assert take_all(w, 0.3) == b"\n[0] begin\n"
    w.next_attempt()
    w.feed((0, 1), b"again\n", 0.4)
    assert take_all(w, 0.4) == b"[0] again\n"


def test_among_talk_an_unfinished_line_waits_longer():
    w = weaver()
    w.feed((0, 1), b"half a li", 0.0)
    shown, now = b"", 0.0
    while b"half" not in shown:
        now += 0.05
        w.feed((1, 1), b"busy\n", now)
        shown = take_all(w, now)
    assert now == pytest.approx(BUSY_PROMPT_S, abs=0.051)


def test_own_lines_break_it_too():
    w = weaver()
    w.feed((0, 1), b"name? ", 0.0)
    take_all(w, PROMPT_S)
    assert w.end_line() == b"\n"
    assert w.end_line() == b""


def test_end_of_a_stream_shows_its_last_line():
    w = weaver()
    w.feed((0, 1), b"no newline", 0.0)
    w.feed((0, 1), b"", 0.0)
    assert take_all(w, 0.0) == b"[0] no newline"
    assert w.empty()


def test_long_line_is_not_cut_into_while_it_comes():
    w = weaver(piece_bytes=100)
    w.feed((0, 1), b"x" * 150, 0.0)
    assert take_all(w, 0.0) == b"[0] " + b"x" * 150
    w.feed((1, 1), b"other\n", 0.01)
    assert w.take(0.01, CLOCK) is None
    assert w.deadline() == PROMPT_S
    w.feed((0, 1), b"x" * 20 + b"\n", 0.02)
    assert take_all(w, 0.02) == b"x" * 20 + b"\n[1] other\n"


def test_long_line_that_stops_gives_way():
    w = weaver(piece_bytes=100)
    w.feed((0, 1), b"x" * 150, 0.0)
    take_all(w, 0.0)
    w.feed((1, 1), b"other\n", 0.01)
    assert take_all(w, PROMPT_S) == b"\n[1] other\n"


def test_endless_line_gives_way():
    w = weaver(piece_bytes=1000)
    shown, fed = b"", 0
    w.feed((1, 1), b"patient\n", 0.0)
    w.feed((0, 1), b"y" * 1000, 0.0)
    shown += take_all(w, 0.0)
    w.feed((1, 1), b"still patient\n", 0.0)
    while b"still patient" not in shown:
        w.feed((0, 1), b"y" * 1000, 0.0)
        fed += 1000
        shown += take_all(w, 0.0)
        assert fed <= WHOLE_LINE_BYTES + 2000


def test_blocks_are_bounded_and_streams_take_turns():
    w = weaver()
    for rank in (0, 1):
        w.feed((rank, 1), (b"z" * 99 + b"\n") * 2000, 0.0)
    owners = []
    while (taken := w.take(0.0, CLOCK)) is not None:
        assert taken[2] <= BLOCK_BYTES
        owners.append(taken[1][0])
    assert owners[:4] == [0, 1, 0, 1]


class Terminal:
    """Checks each block against what is fed, as a reader of the terminal would."""

    def __init__(self, data):
        self.rest = dict(data)
        self.broken = {}
        self.owner = None  # whose unfinished line the cursor is in

    def show(self, block, key, count):
        raw, self.rest[key] = self.rest[key][:count], self.rest[key][count:]
        if not block:  # the newline of a line that was broken before
            assert raw == b"\n" and self.broken.pop(key)
            return
        tag = b"[%d] " % key[0]
        if self.owner is not None and block.startswith(b"\n") and self.owner != key:
            self.broken[self.owner] = True
            block, self.owner = block[1:], None
        self.broken.pop(key, None)
        if self.owner is None:
            assert block.startswith(tag)
            block = block[len(tag) :]
        assert self.owner in (None, key), "two streams in one line"
        ended = raw.endswith(b"\n")
        assert block == raw[: -1 if ended else None].replace(b"\n", b"\n" + tag) + (b"\n" if ended else b"")
        self.owner = None if ended else key


def test_random_schedules_keep_every_byte_and_line():
    for seed in range(200):
        print("seed", seed)
        chance = random.Random(seed)
        w = weaver(world_size=10, piece_bytes=chance.choice([50, 400, 100_000]))
        data, feeds = {}, {}
        for key in [(rank, stream) for rank in range(3) for stream in (1, 2)]:
            text = b"\n".join(b"q" * chance.choice([0, 3, 30, 300]) for _ in range(chance.randint(0, 30)))
            cuts = sorted(chance.sample(range(len(text) + 1), min(len(text), chance.randint(0, 8))))
            feeds[key] = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if b > a]
            data[key] = text
        now, terminal = 0.0, Terminal(data)
        while any(feeds.values()):
            key = chance.choice([key for key, pieces in feeds.items() if pieces])
            w.feed(key, feeds[key].pop(0), now)
            now += chance.choice([0.0, 0.001, 0.05, 0.2])
            for _ in range(chance.randint(0, 3)):
                if (taken := w.take(now, CLOCK)) is not None:
                    terminal.show(*taken)
        for key in data:
            w.feed(key, b"", now)
        while not w.empty():
            if (taken := w.take(now, CLOCK)) is not None:
                terminal.show(*taken)
            now += 0.01
        assert not any(terminal.rest.values())
