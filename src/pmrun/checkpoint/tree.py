# SPDX-License-Identifier: Apache-2.0
"""A program's state as a tree of JSON and a list of arrays, and back.

JSON's own types stand for themselves, all others are objects of one key that says what they are: ``{"tuple": [...]}``,
``{"array": name, "dtype": ..., "shape": ...}``. Arrays, tensors and bytes are left out and named by the path that leads
to them. Nothing is pickled, so that reading a checkpoint runs no code of whoever wrote it. Invariants: what `flatten`
accepts, `rebuild` gives back, in equal types and bits; what it does not is refused with the path to it.
"""

from __future__ import annotations

import ast
import importlib
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pmrun.errors import CheckpointError, UsageError

Tree = Any  # what json.dumps takes

_SAFE_INTEGER = 1 << 63  # beyond, other readers of JSON lose digits
_ADVICE = "save arrays, tensors, numbers, text, bytes and lists, tuples, sets and dicts of them (or its state_dict())"


class Leaf(NamedTuple):
    """An array that is kept beside the tree."""

    name: str
    dtype: str
    array: npt.NDArray[Any]  # the program's own memory, in any layout


class Flat(NamedTuple):
    """A state taken apart."""

    tree: Tree
    leaves: list[Leaf]


def flatten(state: object) -> Flat:
    """Take a state apart; its arrays are not copied.

    Raises
    ------
    UsageError
        Something in it cannot be saved; the text names it.
    """
    walk = _Walk()
    return Flat(walk.node(state, ()), walk.leaves)


def rebuild(tree: Tree, buffers: Mapping[str, npt.NDArray[np.uint8]]) -> Any:
    """The state of a tree whose arrays' bytes are in `buffers`; KeyError, TypeError or ValueError if it is none."""
    if isinstance(tree, list):
        return [rebuild(item, buffers) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = next(iter(tree), "")  # an object without a key is of no kind
    body = tree[kind]
    if kind == "dict":
        return {key: rebuild(item, buffers) for key, item in body.items()}
    if kind == "items":
        return {rebuild(key, buffers): rebuild(item, buffers) for key, item in body}
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](rebuild(item, buffers) for item in body)
    if kind in _BYTES:
        return _BYTES[kind](buffers[body].tobytes())
    if kind in _NUMBERS:
        return _NUMBERS[kind](body)
    return _LEAVES[kind](buffers[body], tree["dtype"], tree["shape"])


class _Walk:
    """One pass over a state."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self._names: set[str] = set()
        self._above: set[int] = set()  # the containers that this one is in

    def node(self, value: Any, path: tuple[object, ...]) -> Tree:
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if -_SAFE_INTEGER <= value < _SAFE_INTEGER else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is complex:
            return {"complex": repr(value)}
        if kind in (bytes, bytearray):
            name = self._keep(path, "|u1", np.frombuffer(value, np.uint8))
            return {kind.__name__: name}
        if isinstance(value, np.generic):
            return self._array("scalar", np.asarray(value), path)
        if kind in (np.ndarray, np.memmap):
            return self._array("array", value, path)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return self._tensor(torch, value, path)
        return self._container(value, path)

    def _container(self, value: Any, path: tuple[object, ...]) -> Tree:
        kind = type(value)
        if kind not in (dict, OrderedDict, list, tuple, set, frozenset):
            raise UsageError(f"cannot save {_shown(path)}, which is a {kind.__qualname__}: {_ADVICE}")
        if id(value) in self._above:
            raise UsageError(f"cannot save {_shown(path)}: it contains itself")
        self._above.add(id(value))
        try:
            if isinstance(value, dict):
                return self._mapping(value, path)
            nodes = [self.node(item, (*path, at)) for at, item in enumerate(value)]
            return nodes if kind is list else {kind.__name__: nodes}
        except RecursionError:
            raise UsageError(f"cannot save {_shown(path[:3])}: it is nested too deeply") from None
        finally:
            self._above.discard(id(value))

    def _mapping(self, value: Mapping[Any, Any], path: tuple[object, ...]) -> Tree:
        if all(type(key) is str for key in value):
            return {"dict": {key: self.node(item, (*path, key)) for key, item in value.items()}}
        pairs = enumerate(value.items())
        return {"items": [[self.node(k, (*path, f"key {at}")), self.node(item, (*path, k))] for at, (k, item) in pairs]}

    def _array(self, kind: str, array: npt.NDArray[Any], path: tuple[object, ...]) -> Tree:
        dtype = array.dtype
        if dtype.hasobject or dtype.kind == "T":
            raise UsageError(f"cannot save {_shown(path)}, an array of {dtype}: {_ADVICE}")
        text = _dtype_text(dtype)
        return {kind: self._keep(path, text, array), "dtype": text, "shape": list(array.shape)}

    def _tensor(self, torch: Any, tensor: Any, path: tuple[object, ...]) -> Tree:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise UsageError(f"cannot save {_shown(path)}, a tensor that is sparse or quantized: make it dense first")
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        dtype = str(plain.dtype).removeprefix("torch.")
        bits = _TENSOR_BITS.get(dtype)
        try:
            array = plain.numpy() if bits is None else plain.view(getattr(torch, bits)).numpy()
        except TypeError:
            raise UsageError(f"cannot save {_shown(path)}, a tensor of {dtype}: convert it first") from None
        return {"tensor": self._keep(path, dtype, array), "dtype": dtype, "shape": list(plain.shape)}

    def _keep(self, path: tuple[object, ...], dtype: str, array: npt.NDArray[Any]) -> str:
        name = base = ".".join(map(_part, path)) or "state"
        count = 1
        while name in self._names or name == "__metadata__":
            count += 1
            name = f"{base}#{count}"
        self._names.add(name)
        self.leaves.append(Leaf(name, dtype, array))
        return name


def _part(key: object) -> str:
    text = key if isinstance(key, str) else repr(key)
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text


def _shown(path: Sequence[object]) -> str:
    return "state" + "".join(f"[{key!r}]" for key in path)


# ---- back ---------------------------------------------------------------------------------------------------


def _array(data: npt.NDArray[np.uint8], dtype: str, shape: list[int]) -> npt.NDArray[Any]:
    element = dtype_of(dtype)
    if element.itemsize == 0:
        return np.empty(shape, element)
    return data.view(element).reshape(shape)


def _scalar(data: npt.NDArray[np.uint8], dtype: str, shape: list[int]) -> np.generic:
    scalar: Any = _array(data, dtype, shape)[()]
    return scalar  # type: ignore[no-any-return]  # numpy's own stub calls it an array


def _tensor(data: npt.NDArray[np.uint8], dtype: str, shape: list[int]) -> Any:
    torch = _library("torch", "torch tensors")
    return torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)


_SEQUENCES: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_BYTES: dict[str, Callable[[bytes], Any]] = {"bytes": bytes, "bytearray": bytearray}
_NUMBERS: dict[str, Callable[[str], Any]] = {"int": lambda text: int(text, 16), "float": float, "complex": complex}
_LEAVES: dict[str, Callable[[npt.NDArray[np.uint8], str, list[int]], Any]] = {
    "array": _array,
    "scalar": _scalar,
    "tensor": _tensor,
}


def _library(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CheckpointError(f"the checkpoint holds {what}, and {name} is not installed here") from None


# ---- types of elements --------------------------------------------------------------------------------------

_TENSOR_BITS = {  # what numpy has no type for travels as integers of its size
    "bfloat16": "int16",
    **dict.fromkeys(("float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz", "float8_e8m0fnu"), "uint8"),
}
_EXTENSION = "ml_dtypes"


def _dtype_text(dtype: np.dtype[Any]) -> str:
    if dtype.type.__module__.split(".")[0] == _EXTENSION:
        return f"{_EXTENSION}.{dtype.name}"
    return dtype.str if dtype.names is None else repr(np.lib.format.dtype_to_descr(dtype))


def dtype_of(text: str) -> np.dtype[Any]:
    """The numpy type that a tree names."""
    if text.startswith(f"{_EXTENSION}."):
        library = _library(_EXTENSION, f"arrays of {text}")
        extension: np.dtype[Any] = np.dtype(getattr(library, text.removeprefix(f"{_EXTENSION}.")))
        return extension
    if text.startswith("["):
        described: np.dtype[Any] = np.lib.format.descr_to_dtype(ast.literal_eval(text))
        return described
    return np.dtype(text)
