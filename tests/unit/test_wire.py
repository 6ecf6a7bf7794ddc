# SPDX-License-Identifier: Apache-2.0
"""Messages survive the wire, and nothing else passes for one."""

import random

import msgspec
import pytest

from pmrun import wire

START = wire.Start(
    job_id="j", attempt=0, node_rank=1, node_name="b", peers=("10.0.0.1", "10.0.0.2"), main_port=20001, first_rank=2,
    local_world_size=2, world_size=4, command=(b"python", b"\xff\xfe.py"), cwd=None, env=((b"A", b"\xff"),),
    bind_to_core=True, stdin_ranks=(), credit_bytes=1 << 18, layout=(2, 2),
    data_address="10.0.0.2", encrypt=True,
)  # fmt: skip
EXITED = wire.RankExited(
    rank=3, pid=7, status=-9, sent_signal=0, oom=True, abort_state=1, abort_rank=2, abort_text="x",
    out_tail=b"", err_tail=b"\x00\xff", last_call="allreduce #8",
)  # fmt: skip
MESSAGES = [
    START, EXITED, wire.Signal(2), wire.Stop(0.1, 0.1, 1, 3, "a", "exit code 3", True), wire.Credit(1, 2, 65536),
    wire.Stdin(b""), wire.Leave(), wire.Hello(wire.VERSION, 0, 99), wire.Gathered(1, (2, 3), ("a", "b")),
    wire.Verdict(1, 4, "b", "killed"), wire.RankLeft(3), wire.Started((1, 2)),
    wire.StartFailed(-1, "no", 75), wire.Output(1, 1, b"\n\xff"), wire.StdinCredit(-1), wire.NodeDone(()),
    wire.StoreRequest(3, b"\xff"), wire.StoreClosed(3), wire.Notice("a line"),
    wire.StoreReply(3, b""), wire.Attach(3, 24, 80), wire.Typed(3, b"p x\r"), wire.Interrupt(3),
    wire.Debugging(3, "train.py:4 in main"), wire.Shown(3, b"(Pdb) "),
    wire.Refused("another version", 75), wire.Beat(), wire.Look(1), wire.Waits(75.5, (1, 2)),
    wire.Looked(1, (wire.Sight(3, 7, "computing", last=wire.Pending("allreduce #8", 1.5), entered=((0, 5, 8),)),)),
    wire.AskedToEnd(),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message):
    assert wire.decode(wire.encode(message)) == message


def test_all_messages_are_tried():
    kinds = {type(message) for message in MESSAGES}
    assert kinds == set(wire.Message.__args__)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x90", msgspec.msgpack.encode(["nosuch", 1]), msgspec.msgpack.encode(["signal", "two"]),
     msgspec.msgpack.encode(["signal"]), msgspec.msgpack.encode({"type": "signal"}), wire.encode(START)[:-1],
     wire.encode(START) + b"\x00", b"\x91" * 100_000],
)  # fmt: skip
def test_what_is_no_message(data):
    with pytest.raises(wire.WireError):
        wire.decode(data)


def test_noise_is_refused_or_a_message():
    seed = 20
    print("seed", seed)
    noise = random.Random(seed)
    good = [wire.encode(message) for message in MESSAGES]
    for _ in range(20_000):
        data = bytearray(noise.choice(good))
        for _ in range(noise.randint(1, 4)):
            if data:
                data[noise.randrange(len(data))] = noise.randrange(256)
        if noise.random() < 0.3:
            del data[noise.randrange(len(data) + 1) :]
        try:
            message = wire.decode(data)
        except wire.WireError:
            continue
        assert isinstance(message, tuple(wire.Message.__args__))


def test_size_limits():
    with pytest.raises(wire.WireError, match="the limit is"):
        wire.encode(wire.Stdin(bytes(wire.MAX_MESSAGE_BYTES)))
    with pytest.raises(wire.WireError, match="the limit is"):
        wire.decode(bytes(wire.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(wire.WireError):
        wire.decode(b"\x93\xa3out\x01\xc6\xff\xff\xff\xff")  # claims 4 GiB that are not there
