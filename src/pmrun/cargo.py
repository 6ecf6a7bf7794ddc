# SPDX-License-Identifier: Apache-2.0
"""An object on its way into a gang: bytes with an index, large arrays beside the pickle, each copied once.

Layout: magic, number of parts, their lengths; then the parts, each at a multiple of 64 bytes: the pickle and its buffers
(pickle protocol 5). Whoever maps the bytes privately has arrays that may be written and share what nobody wrote.
Functions and classes of ``__main__`` or a notebook travel by value (cloudpickle). Invariant: what cannot be pickled is
refused by the one that sends, with the path to it as pickle tells it.
"""

from __future__ import annotations

import functools
import io
import struct
import types
from collections import ChainMap
from typing import Any, ClassVar, Final

from pmrun.errors import UsageError

_MAGIC: Final = b"PMRc"
_HEAD: Final = struct.Struct("<4sI")
_ALIGN: Final = 64


def pack(value: object, what: str) -> list[bytes | memoryview]:
    """Return the pieces of `value`, to be written one after another.

    Raises
    ------
    UsageError
        It cannot be pickled; the text begins with `what`.
    """
    import pickle

    buffers: list[pickle.PickleBuffer] = []
    body = io.BytesIO()
    try:
        _pickler()(body, protocol=5, buffer_callback=buffers.append).dump(value)
        parts: list[bytes | memoryview] = [body.getbuffer(), *(buffer.raw() for buffer in buffers)]
    except Exception as error:
        text = f"{what} cannot be pickled ({type(error).__name__}: {error}): pass what it is made from instead"
        raise UsageError(text) from error
    lengths = [memoryview(part).nbytes for part in parts]
    head = _HEAD.pack(_MAGIC, len(parts)) + struct.pack(f"<{len(parts)}Q", *lengths)
    pieces: list[bytes | memoryview] = [head, _gap(len(head))]
    for part, length in zip(parts, lengths, strict=True):
        pieces += [part, _gap(length)]
    return pieces


def unpack(data: memoryview) -> Any:
    """Return the object; its arrays lie in `data`."""
    import pickle

    magic, count = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("these bytes are no object that pmrun packed")
    lengths = struct.unpack_from(f"<{count}Q", data, _HEAD.size)
    place = _aligned(_HEAD.size + 8 * count)
    parts = []
    for length in lengths:
        parts.append(data[place : place + length])
        place += _aligned(length)
    return pickle.loads(parts[0], buffers=parts[1:])


@functools.cache
def _pickler() -> type[Any]:
    """cloudpickle's, but code keeps the name of its file, for which cloudpickle puts a constant: tracebacks show it."""
    import cloudpickle  # type: ignore[import-untyped]

    plain = cloudpickle.Pickler.dispatch_table[types.CodeType]

    def reduce_code(code: types.CodeType) -> tuple[Any, tuple[Any, ...]]:
        make, arguments = plain(code)
        return make, tuple(code.co_filename if item == "<dynamic-code>" else item for item in arguments)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        dispatch_table: ClassVar[ChainMap[type, Any]] = ChainMap(
            {types.CodeType: reduce_code}, cloudpickle.Pickler.dispatch_table
        )

    return Pickler


def _aligned(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN


def _gap(length: int) -> bytes:
    return bytes(_aligned(length) - length)
