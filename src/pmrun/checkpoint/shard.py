# SPDX-License-Identifier: Apache-2.0
"""The file that one rank writes: its state in the safetensors format, which other tools read, too.

Eight bytes with the header's length, a header of JSON, and the arrays' bytes one after the other. The header names each
array's type, shape and place; under ``__metadata__`` it has the tree that the arrays hang in (tree.py). A type that
safetensors does not know is there as plain bytes, and the tree knows better. Invariants: the bytes are a function of the
state; a reader takes no more memory than it was told the file is long, whatever the header says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pmrun.checkpoint import tree
from pmrun.errors import CheckpointError, UsageError

SUFFIX: Final = ".safetensors"
FORMAT: Final = "pmrun-1"
BLOCK_BYTES: Final = 8 << 20
_HEADER_BYTES_MAX: Final = 100_000_000  # what safetensors reads
_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"

_KNOWN: Final = {
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
}
_OPAQUE: Final = "U8"
# What a header of sound JSON that no pmrun wrote leads to.
_NONSENSE: Final = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


class Damaged(Exception):
    """What was read is not what was written; the text says in which way."""


class Shard:
    """A state, ready to be written as often as asked.

    Parameters
    ----------
    state : object
        Not copied: it must not change before `blocks` was read for the last time, unless `snapshot` was called.
    """

    def __init__(self, state: object) -> None:
        flat = tree.flatten(state)
        self._arrays = [leaf.array for leaf in flat.leaves]
        self._head = _head(flat)
        self.size = len(self._head) + sum(array.nbytes for array in self._arrays)

    def snapshot(self, memory: list[npt.NDArray[np.uint8]]) -> None:
        """Copy the arrays, into `memory` as far as it fits: what an earlier snapshot of the same program left there."""
        for at, array in enumerate(self._arrays):
            if at == len(memory):
                memory.append(np.empty(array.nbytes, np.uint8))
            elif memory[at].nbytes != array.nbytes:
                memory[at] = np.empty(array.nbytes, np.uint8)
            copy = memory[at]
            if array.nbytes:
                np.copyto(copy.view(array.dtype).reshape(array.shape), array)
            self._arrays[at] = copy
        del memory[len(self._arrays) :]

    def blocks(self) -> Iterator[memoryview]:
        """The file's bytes, in pieces of at most BLOCK_BYTES; arrays that are contiguous are not copied."""
        yield memoryview(self._head)
        for array in self._arrays:
            if array.nbytes:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                for start in range(0, len(data), BLOCK_BYTES):
                    yield data[start : start + BLOCK_BYTES]


def _head(flat: tree.Flat) -> bytes:
    entries: dict[str, Any] = {_METADATA: {"format": FORMAT, "tree": json.dumps(flat.tree)}}
    offset = 0
    for leaf in flat.leaves:
        size = leaf.array.nbytes
        known = _known(leaf.dtype)
        entries[leaf.name] = {
            "dtype": known or _OPAQUE,
            "shape": list(leaf.array.shape) if known else [size],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # so that the arrays begin where numbers may
    if len(text) > _HEADER_BYTES_MAX:
        raise UsageError(f"the state's {len(text)} bytes beside its arrays are too many: put long lists into arrays")
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _known(dtype: str) -> str | None:
    """What safetensors calls a type that a tree names."""
    return _KNOWN.get(np.dtype(dtype).name if dtype[0] in "<|" else dtype.removeprefix("ml_dtypes."))


class Reader:
    """Takes a shard's bytes as they come, and gives the state back.

    Parameters
    ----------
    size : int
        How many bytes there should be.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._read = 0
        self._head = bytearray()
        self._tree: tree.Tree = None
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}
        self._targets: list[npt.NDArray[np.uint8]] = []  # to fill, the next one last
        self._filled = 0  # of the next one
        self._header_bytes = -1  # not known yet

    def write(self, block: memoryview | bytes) -> None:
        """The next bytes; `Damaged` where they cannot be those of a shard of this size."""
        data = memoryview(block)
        self._read += len(data)
        if self._read > self._size:
            raise Damaged(f"it is longer than {self._size} bytes")
        if self._header_bytes < 0 or len(self._head) < _LENGTH_BYTES + self._header_bytes:
            data = self._take_head(data)
        while len(data):
            target, filled = self._targets[-1], self._filled
            count = min(len(data), len(target) - filled)
            target[filled : filled + count] = np.frombuffer(data[:count], np.uint8)
            self._filled += count
            data = data[count:]
            self._drop_full()

    def check(self) -> None:
        """`Damaged` where bytes are missing."""
        if self._read != self._size:
            raise Damaged(f"it has {self._read} of {self._size} bytes")

    @property
    def head(self) -> bytes:
        """The first bytes, up to the arrays."""
        return bytes(self._head)

    @property
    def buffers(self) -> list[npt.NDArray[np.uint8]]:
        """The arrays' bytes, in the order of the file; there once the head is."""
        return [buffer for buffer in self._buffers.values() if len(buffer)]

    def finish(self) -> Any:
        """The state, whose arrays lie in the buffers."""
        try:
            return tree.rebuild(self._tree, self._buffers)
        except (*_NONSENSE, SyntaxError, MemoryError) as error:  # the last two: a type that Python's parser refuses
            raise CheckpointError(f"a shard's header makes no sense ({type(error).__name__}: {error})") from None

    def _take_head(self, data: memoryview) -> memoryview:
        """Keep what belongs to the header; returns the rest."""
        if self._header_bytes < 0:
            taken = min(len(data), _LENGTH_BYTES - len(self._head))
            self._head += data[:taken]
            data = data[taken:]
            if len(self._head) < _LENGTH_BYTES:
                return data
            self._header_bytes = int.from_bytes(self._head, "little")
            if self._header_bytes > min(self._size - _LENGTH_BYTES, _HEADER_BYTES_MAX):
                raise Damaged(f"its header would have {self._header_bytes} bytes")
        taken = min(len(data), _LENGTH_BYTES + self._header_bytes - len(self._head))
        self._head += data[:taken]
        if len(self._head) == _LENGTH_BYTES + self._header_bytes:
            self._parse()
        return data[taken:]

    def _parse(self) -> None:
        try:
            entries = json.loads(self._head[_LENGTH_BYTES:].decode())
            metadata = entries.pop(_METADATA)
            format_ = metadata["format"]
            self._tree = json.loads(metadata["tree"])
            spans = [(name, *entry["data_offsets"]) for name, entry in entries.items()]
            places = [(name, int(start), int(stop)) for name, start, stop in spans]
        except _NONSENSE as error:
            raise Damaged(f"its header makes no sense ({type(error).__name__}: {error})") from None
        if format_ != FORMAT:
            raise CheckpointError(f"a shard of format {format_!r}, and this pmrun reads {FORMAT!r}: update pmrun")
        end = 0
        for _, start, stop in places:
            if start != end or stop < start:
                raise Damaged("its arrays do not follow one another")
            end = stop
        if _LENGTH_BYTES + self._header_bytes + end != self._size:
            raise Damaged(f"its header tells of {end} bytes of arrays")
        self._buffers = {name: np.empty(stop - start, np.uint8) for name, start, stop in places}
        self._targets = list(reversed(self._buffers.values()))
        self._drop_full()

    def _drop_full(self) -> None:
        while self._targets and self._filled == len(self._targets[-1]):
            self._targets.pop()
            self._filled = 0
