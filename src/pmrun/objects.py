# SPDX-License-Identifier: Apache-2.0
"""Picklable objects as flat byte frames, and back.

Layout: header (magic, kind, length of the pickle, number of buffers), the buffers' lengths, the pickle, then the
buffers, each at a multiple of 64 bytes. Large arrays travel as buffers (pickle protocol 5), so they are copied
once and not through the pickle; the receiver's arrays lie in the frame itself.
Invariant: `pack` always returns a frame. What cannot be pickled becomes a frame of kind FAILED with the reason, so
that the ranks that wait for it raise too, and nobody hangs.
"""

from __future__ import annotations

import struct

from pmrun import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    from typing import Any

_HEADER = struct.Struct("<4sIQQ")
_MAGIC = b"PMRo"
_GOOD, _FAILED = 0, 1
_ALIGN = 64
_IN_BAND_BYTES_MAX = 2048  # below, a buffer of its own costs more than the copy it saves


def _aligned(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN


def pack(value: object, what: str) -> bytearray:
    """The frame of `value`; of its failure, if it cannot be pickled."""
    import pickle  # no part of joining the gang

    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes <= _IN_BAND_BYTES_MAX:
            return True
        buffers.append(raw)
        return False

    try:
        body = pickle.dumps(value, protocol=5, buffer_callback=keep)
    except Exception as error:  # noqa: BLE001 - an object's own __reduce__ may raise anything
        return failure(f"{what}: this {type(value).__name__} cannot be pickled ({type(error).__name__}: {error})")
    return _frame(_GOOD, body, buffers)


def failure(text: str) -> bytearray:
    """The frame of a rank that has no object to send: who unpacks it raises `TypeError` with this text."""
    return _frame(_FAILED, " ".join(text.split()).encode("utf-8", "replace"), [])


def _frame(kind: int, body: bytes, buffers: list[memoryview]) -> bytearray:
    lengths = struct.pack(f"<{len(buffers)}Q", *(buffer.nbytes for buffer in buffers))
    start = _HEADER.size + len(lengths)
    total = _aligned(start + len(body)) + sum(_aligned(buffer.nbytes) for buffer in buffers)
    frame = _native.frame_blank(total)
    view = memoryview(frame)
    _HEADER.pack_into(view, 0, _MAGIC, kind, len(body), len(buffers))
    view[_HEADER.size : start] = lengths
    view[start : start + len(body)] = body
    place = _aligned(start + len(body))
    for buffer in buffers:
        view[place : place + buffer.nbytes] = buffer
        place += _aligned(buffer.nbytes)
    return frame


def _parts(frame: bytearray | memoryview) -> tuple[int, memoryview, list[memoryview]]:
    view = memoryview(frame)
    if view.nbytes < _HEADER.size:
        raise _foreign()
    magic, kind, length, count = _HEADER.unpack_from(view)
    start = _HEADER.size + 8 * count
    if magic != _MAGIC or start + length > view.nbytes:
        raise _foreign()
    place = _aligned(start + length)
    buffers = []
    for nbytes in struct.unpack_from(f"<{count}Q", view, _HEADER.size):
        buffers.append(view[place : place + nbytes])
        place += _aligned(nbytes)
    return kind, view[start : start + length], buffers


def _foreign() -> ValueError:
    return ValueError("the message is no object: it was sent as a buffer, so receive it with recv(), not recv_object()")


def unpack(frame: bytearray | memoryview, source: int) -> Any:
    """The object in a frame that rank `source` packed."""
    import pickle

    kind, body, buffers = _parts(frame)
    if kind == _FAILED:
        raise TypeError(f"rank {source} sent no object: {bytes(body).decode('utf-8', 'replace')}")
    return pickle.loads(body, buffers=buffers)


def raise_failure(frame: bytearray | memoryview) -> None:
    """On the rank that packed it: raise, if what it packed could not be pickled."""
    kind, body, _ = _parts(frame)
    if kind == _FAILED:
        raise TypeError(bytes(body).decode("utf-8", "replace"))
