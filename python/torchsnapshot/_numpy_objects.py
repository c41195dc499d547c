"""Pickled numpy objects, rebuilt with every part checked.

numpy's own ``__setstate__`` methods trust their argument: a made-up dtype could say that raw bytes are pointers to
objects. So dtypes and arrays are made here by numpy's public constructors, which check offsets and sizes. What no numpy
would have written is an UnpicklingError.
"""

from __future__ import annotations

import math
import re
from pickle import UnpicklingError
from typing import Any

import numpy as np

_BASE_DTYPE = re.compile(r"[?biufcOSUVMm][0-9]*\Z")
_DATETIME_UNITS = frozenset({"Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"})
_ALIGNED_FLAG = 0x80


def known_globals() -> dict[str, Any]:
    """What a pickle may name, by its full name; the functions are the checked ones of this module."""
    table: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for module in ("numpy.core", "numpy._core"):  # before and since numpy 2
        table[f"{module}.multiarray._reconstruct"] = new_array
        table[f"{module}.multiarray.scalar"] = scalar
        table[f"{module}._internal._convert_to_stringdtype_kwargs"] = string_dtype
    for cls in set(np.sctypeDict.values()):
        table[f"numpy.{cls.__name__}"] = cls
    return table


def base_dtype(name: Any, align: Any = False, copy: Any = True) -> np.dtype[Any]:
    """A dtype of its own (never a shared one) from a short name such as ``f8``; build_dtype() completes it."""
    if type(name) is not str or not _BASE_DTYPE.match(name):
        raise UnpicklingError(f"malformed numpy dtype {name!r:.60}")
    return np.dtype(name, copy=True)


def build_dtype(base: np.dtype[Any], state: Any) -> np.dtype[Any]:
    """The dtype that `base` with its pickled state means."""
    if type(state) is not tuple or len(state) not in (8, 9) or state[0] not in (3, 4):
        raise UnpicklingError("malformed state of a numpy dtype")
    _, order, subdtype, names, fields, itemsize, _, flags = state[:8]
    if order not in ("<", ">", "|", "="):
        raise UnpicklingError(f"malformed byte order {order!r:.20} of a numpy dtype")
    if subdtype is not None:
        return _sub_array(subdtype)
    if names is not None:
        return _structured(names, fields, itemsize, bool(flags & _ALIGNED_FLAG))
    if base.kind in "mM" and len(state) == 9:
        return _datetime(base.kind, order, state[8])
    if base.kind in "SUV" and itemsize != base.itemsize:
        raise UnpicklingError(f"numpy dtype {base} with item size {itemsize!r:.20}")
    return base.newbyteorder(order) if order in "<>" else base


def new_array(cls: Any, shape: Any, typecode: Any) -> np.ndarray[Any, Any]:
    """A stand-in for the array that build_array() makes."""
    if cls is not np.ndarray:
        raise UnpicklingError(f"numpy array of class {cls!r:.80}")
    array: np.ndarray[Any, Any] = np.ndarray((0,), "b")
    return array


def build_array(array: np.ndarray[Any, Any], state: Any) -> np.ndarray[Any, Any]:
    """The array that a pickled state describes: `array` itself if it holds objects (it may be one of them), else a new
    one, with the byte order and the padding that were saved."""
    if type(state) is not tuple or len(state) != 5:
        raise UnpicklingError("malformed state of a numpy array")
    _, shape, dtype, fortran, content = state
    if not isinstance(dtype, np.dtype):
        raise UnpicklingError("numpy array without a dtype")
    count = math.prod(_shape(shape))
    if _is_list_pickled(dtype):
        if type(content) is not list or len(content) != count:
            raise _wrong_size("array", dtype)
        set_state: Any = array.__setstate__
        set_state((1, shape, dtype, bool(fortran), content))
        return array
    if type(content) is not bytes or len(content) != count * dtype.itemsize:
        raise _wrong_size("array", dtype)
    order: Any = "F" if fortran else "C"
    if not content:
        return np.zeros(shape, dtype, order)
    built: np.ndarray[Any, Any] = np.ndarray(shape, dtype, buffer=bytearray(content), order=order)
    return built


def scalar(dtype: Any, content: Any = None) -> Any:
    """A numpy scalar from its bytes."""
    if not isinstance(dtype, np.dtype):
        raise UnpicklingError("numpy scalar without a dtype")
    if _is_list_pickled(dtype):
        # numpy writes a structured scalar that holds objects as a 0-d array.
        if isinstance(content, np.ndarray) and content.shape == () and content.dtype == dtype:
            return content[()]
        raise UnpicklingError(f"malformed numpy scalar of dtype {dtype}")
    if type(content) is not bytes or len(content) != dtype.itemsize:
        raise _wrong_size("scalar", dtype)
    if dtype.itemsize == 0:
        return np.zeros((), dtype)[()]
    return np.ndarray((), dtype, buffer=bytearray(content))[()]


def string_dtype(coerce: Any, na_object: Any = None) -> Any:
    """numpy's dtype for text of any length."""
    cls = getattr(getattr(np, "dtypes", None), "StringDType", None)
    if cls is None:
        raise UnpicklingError("numpy StringDType needs numpy 2")
    if na_object is None:
        return cls(coerce=bool(coerce))
    return cls(na_object=na_object, coerce=bool(coerce))


def _wrong_size(kind: str, dtype: np.dtype[Any]) -> UnpicklingError:
    return UnpicklingError(f"content of a numpy {kind} of dtype {dtype} has another size")


def _is_list_pickled(dtype: np.dtype[Any]) -> bool:
    # Elements that are no plain bytes are pickled one by one: objects, and text of any length (kind "T").
    return dtype.hasobject or dtype.kind == "T"


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
        raise UnpicklingError(f"malformed numpy shape {shape!r:.60}")
    return shape


def _sub_array(subdtype: Any) -> np.dtype[Any]:
    if type(subdtype) is not tuple or len(subdtype) != 2 or not isinstance(subdtype[0], np.dtype):
        raise UnpicklingError("malformed numpy sub-array dtype")
    return np.dtype((subdtype[0], _shape(subdtype[1])))


def _structured(names: Any, fields: Any, itemsize: Any, aligned: bool) -> np.dtype[Any]:
    if type(names) is not tuple or type(fields) is not dict or type(itemsize) is not int:
        raise UnpicklingError("malformed structured numpy dtype")
    formats, offsets, titles = [], [], []
    for name in names:
        field = fields.get(name)
        if type(field) is not tuple or len(field) not in (2, 3) or not isinstance(field[0], np.dtype):
            raise UnpicklingError(f"malformed field {name!r:.40} of a numpy dtype")
        formats.append(field[0])
        offsets.append(field[1])
        titles.append(field[2] if len(field) == 3 else None)
    description = {"names": list(names), "formats": formats, "offsets": offsets, "itemsize": itemsize}
    if any(title is not None for title in titles):
        description["titles"] = titles
    return np.dtype(description, align=aligned)  # type: ignore[call-overload,no-any-return]


def _datetime(kind: str, order: str, metadata: Any) -> np.dtype[Any]:
    try:
        _, (unit, count, divisor, _) = metadata
        unit = unit.decode("ascii") if isinstance(unit, bytes) else unit
    except (TypeError, ValueError, AttributeError):
        raise UnpicklingError("malformed numpy datetime dtype") from None
    prefix = f"{order if order in '<>' else '='}{kind}8"
    if unit == "generic":
        return np.dtype(prefix)
    if unit not in _DATETIME_UNITS or type(count) is not int or count < 1 or divisor != 1:
        raise UnpicklingError(f"malformed unit {unit!r:.20} of a numpy datetime dtype")
    return np.dtype(f"{prefix}[{count}{unit}]")
