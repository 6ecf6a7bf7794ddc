# SPDX-License-Identifier: Apache-2.0
"""The words between a rank and the host of its store, and the frames in which they travel.

A rank sends requests (`Request`) and gets one reply (`Reply`) for each, by number and in any order. A frame is a
4-byte length and one word, a MessagePack array. Between nodes the words travel inside the messages of wire.py.
Invariant: nothing takes memory for more than `MAX_FRAME_BYTES`, and whatever is not a frame with one of the words
expected is a `StoreWireError`.
"""

from __future__ import annotations

import struct
from typing import Final, TypeVar

import msgspec

from pmrun.errors import PmrunError

VERSION: Final = 2  # a rank may run another installation of pmrun than its agent
MAX_KEY_BYTES: Final = 1 << 10
MAX_VALUE_BYTES: Final = 1 << 20
MAX_BATCH_BYTES: Final = 1 << 20  # of keys and values, where a request or reply has several
MAX_FRAME_BYTES: Final = 2 * MAX_VALUE_BYTES + (64 << 10)  # a compare_and_set has two values
MAX_STORE_BYTES: Final = 64 << 20
ENTRY_BYTES: Final = 128  # what an entry counts beside its key and value
LASTING: Final = "lasting/"  # keys that begin so outlive attempts; no request mixes them with others

_LENGTH = struct.Struct("<I")
_T = TypeVar("_T")


class StoreWireError(PmrunError):
    """Bytes that are not a frame of the store's protocol."""


class _Word(msgspec.Struct, frozen=True, array_like=True):
    """Base of all words. `number` is the caller's. Fields are positional: only ever append, with a default."""

    number: int


# ---- requests -----------------------------------------------------------------------------------------------


class Open(_Word, frozen=True, tag="open"):
    """First of a process: what an earlier process of the rank still waits for is dropped. `Opened`."""

    version: int


class Set(_Word, frozen=True, tag="set"):
    """Set all keys, or none where one of them is refused. `Done`."""

    items: tuple[tuple[str, bytes], ...]


class Get(_Word, frozen=True, tag="get"):
    """Wait until all keys are set, `timeout_s` at most. `Values`, or `Done` without `values`."""

    keys: tuple[str, ...]
    timeout_s: float  # infinity: for ever
    values: bool


class Add(_Word, frozen=True, tag="add"):
    """Add to the decimal number that the key holds; none counts as 0. `Sum`."""

    key: str
    amount: int


class CompareAndSet(_Word, frozen=True, tag="cas"):
    """Where the key holds `expected`, let it hold `desired`; None stands for a key that is not set. `Done`."""

    key: str
    expected: bytes | None
    desired: bytes | None


class Delete(_Word, frozen=True, tag="delete"):
    """`Done`, with whether the key was set."""

    key: str


class Keys(_Word, frozen=True, tag="keys"):
    """The keys that begin with `prefix` and come after `after`, in order. `Names`."""

    prefix: str
    after: str


class Pace(_Word, frozen=True, tag="pace"):
    """Take a place in a line of evenly spaced ones: `Sum`, nanoseconds from now until its turn (not above 0: at once).

    The key holds when the line ends, by the host's clock, which is the only one in it. A line that ended earlier than
    `credit_ns` ago begins there. A turn further away than `most_ns` is not taken.
    """

    key: str
    cost_ns: int
    credit_ns: int
    most_ns: int


class Cancel(_Word, frozen=True, tag="cancel"):
    """Nobody waits for the reply to this number any more. There is no reply."""


Ask = Set | Get | Add | CompareAndSet | Delete | Keys | Pace | Cancel  # what the table answers
Request = Open | Ask  # the host of the rank's line answers the first


# ---- replies ------------------------------------------------------------------------------------------------


class Opened(_Word, frozen=True, tag="opened"):
    """`data_key` proves to other nodes' ranks that this one belongs to the gang; empty where no other node can be."""

    version: int
    data_key: bytes


class Done(_Word, frozen=True, tag="done"):
    """Whether it was as wished; a compare_and_set also tells what the key holds now."""

    flag: bool
    value: bytes | None = None


class Values(_Word, frozen=True, tag="values"):
    """Values of the first keys, at least one, as many as `MAX_BATCH_BYTES` hold; ask again for the others."""

    values: tuple[bytes, ...]


class Sum(_Word, frozen=True, tag="sum"):
    """What the key holds now; of `Pace`, how long until then."""

    value: int


class Names(_Word, frozen=True, tag="names"):
    """Keys in order; with `more`, ask again for what comes after the last."""

    names: tuple[str, ...]
    more: bool


class Refused(_Word, frozen=True, tag="refused"):
    """Nothing was changed. `usage`: the request itself was wrong. Number -1 is about the line, which is closed."""

    text: str
    usage: bool


class TimedOut(_Word, frozen=True, tag="timed_out"):
    """The first of the keys that nobody set, how many there are, and the ranks that may have been meant to."""

    keys: tuple[str, ...]
    count: int
    absent: tuple[int, ...]  # have not used the store
    ended: tuple[int, ...]


class GangEnded(_Word, frozen=True, tag="gang_ended"):
    """The gang is being stopped: the window's abort record (window.ABORT_...)."""

    state: int
    rank: int
    node: str
    text: str


Reply = Opened | Done | Values | Sum | Names | Refused | TimedOut | GangEnded

_encoder = msgspec.msgpack.Encoder()
request_decoder: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
ask_decoder: Final[msgspec.msgpack.Decoder[Ask]] = msgspec.msgpack.Decoder(Ask)
reply_decoder: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)


def encode(word: Request | Reply) -> bytes:
    """Return the bytes of one word.

    Raises
    ------
    StoreWireError
        They are more than the other side would accept, or text in it is not Unicode.
    """
    try:
        data = _encoder.encode(word)
    except (UnicodeEncodeError, OverflowError) as error:
        raise StoreWireError(str(error)) from error
    if len(data) > MAX_FRAME_BYTES:
        raise StoreWireError(f"{len(data)} bytes, the limit is {MAX_FRAME_BYTES}")
    return data


def decode(data: bytes | memoryview, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    """Return the word that these bytes are; StoreWireError where they are none that `decoder` knows."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreWireError(f"no word of the store's protocol: {error}") from error


def frame(word: Request | Reply) -> bytes:
    """Return the frame of one word. Errors as for `encode`."""
    data = encode(word)
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Cuts what arrives on a stream into words."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes, decoder: msgspec.msgpack.Decoder[_T]) -> list[tuple[_T, int]]:
        """Take in some bytes; return the words that are whole now, each with its length.

        Raises
        ------
        StoreWireError
            What came is no frame of this protocol; nothing after it can be understood.
        """
        whole: bytes | bytearray = data
        if self._kept:
            self._kept += data
            whole = self._kept
        words: list[tuple[_T, int]] = []
        at = 0
        with memoryview(whole) as view:
            while len(view) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(view, at)
                if length > MAX_FRAME_BYTES:
                    raise StoreWireError(f"a frame of {length} bytes, the limit is {MAX_FRAME_BYTES}")
                end = at + _LENGTH.size + length
                if end > len(view):
                    break
                words.append((decode(view[at + _LENGTH.size : end], decoder), length))
                at = end
        if whole is self._kept:
            del self._kept[:at]
        elif at < len(data):
            self._kept += data[at:]
        return words
