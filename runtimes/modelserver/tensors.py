"""Open Inference Protocol datatypes <-> numpy, as JSON values and as raw little-endian bytes.

Pure functions. What they copy from KServe: the conversions are numpy's (`numpy.array(data, dtype)`
and `reshape`), BYTES are text over JSON and length-prefixed bytes in binary, FP16 never travels as
JSON. Source: Open Inference Protocol "Tensor Data Types" and its binary data extension.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from modelserver.errors import InferenceError, InvalidInput

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}

# Above this many elements a list of Python objects costs more than handing the array to orjson.
_LIST_LIMIT = 64


def dtype_of(datatype: str) -> np.dtype[Any]:
    """Return the numpy dtype of an (upper case) OIP datatype.

    Raises:
        InvalidInput: The datatype is unknown. The text is KServe's, which never names it.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InvalidInput("invalid datatype None in the input")
    return dtype


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the OIP datatype of an array's dtype; text of any kind is BYTES.

    Raises:
        InvalidInput: No OIP datatype fits (dates, complex numbers, structures).
    """
    name = _DATATYPES.get(dtype)
    if name is not None:
        return name
    if dtype.kind in "SU":
        return "BYTES"
    name = _DATATYPES.get(dtype.newbyteorder("="))
    if name is None:
        raise InvalidInput(f"dtype {dtype} has no Open Inference Protocol datatype")
    return name


def from_json(data: list[Any], datatype: str, shape: list[int]) -> Array:
    """Return JSON elements (nested in any way or flat, row-major) as an array of `shape`.

    BYTES elements stay what they are (`str` over REST) in an `object` array.

    Raises:
        InvalidInput: The datatype is unknown.
        ValueError, TypeError, OverflowError: numpy's own words for data that do not fit.
    """
    dtype = dtype_of(datatype)
    if dtype.kind in "iu" and dtype.itemsize == 8:
        _refuse_huge(data)
    return np.array(data, dtype=dtype).reshape(shape)


def _refuse_huge(data: list[Any]) -> None:
    """Integers beyond 64 bits come out of the JSON parser as floats, which numpy would wrap."""
    if np.array(data).dtype.kind != "f":
        return
    for value in np.array(data, dtype=np.object_).ravel():
        if type(value) is float and not -(2.0**63) < value < 2.0**64:
            raise OverflowError("Python int too large to convert to C long")


def from_raw(raw: bytes | memoryview, datatype: str, shape: list[int]) -> Array:
    """Return the raw tensor as an array of `shape`; BYTES become `str` (UTF-8).

    Raises:
        InvalidInput: The datatype is unknown.
        InferenceError: A BYTES element is not UTF-8, or the shape holds -1.
        ValueError, struct.error: The bytes do not fit datatype and shape.
    """
    dtype = dtype_of(datatype)
    if dtype.kind == "O":
        array: Array = np.array([_text(item) for item in split_bytes(raw)], dtype=np.object_)
    else:
        array = np.frombuffer(raw, dtype=dtype.newbyteorder("<"))
        if not array.dtype.isnative:
            array = array.astype(dtype)
    array = array.reshape(shape)
    if list(array.shape) != list(shape):
        raise InferenceError(
            f"got unexpected numpy array shape {list(array.shape)}, expected {list(shape)}"
        )
    return array


def split_bytes(raw: bytes | memoryview) -> list[bytes]:
    """Return the elements of a raw BYTES tensor (uint32 length, then the bytes, repeated)."""
    view = bytes(raw)
    items: list[bytes] = []
    offset = 0
    while offset < len(view):
        (length,) = struct.unpack_from("<I", view, offset)
        offset += 4
        (item,) = struct.unpack_from(f"<{length}s", view, offset)
        offset += length
        items.append(item)
    return items


def join_bytes(items: list[bytes]) -> bytes:
    """Return elements as a raw BYTES tensor."""
    return b"".join(part for item in items for part in (struct.pack("<I", len(item)), item))


def _text(item: object) -> str:
    if not isinstance(item, bytes):
        return str(item)
    try:
        return item.decode()
    except UnicodeDecodeError:
        raise InferenceError(
            f'Failed to encode "{item!r}" using UTF-8. '
            "Please use binary_data=True, if you want to pass a byte array."
        ) from None


def to_json(data: Array | list[Any], datatype: str) -> list[Any] | Array:
    """Return the elements as flat JSON values: a list, or for large numeric tensors an array that
    orjson writes the same way. FP32 widens to the double of the same value, NaN stays (orjson
    writes null).

    Raises:
        InferenceError: A BYTES element is not UTF-8.
    """
    if isinstance(data, list):
        if datatype == "BYTES":
            return [_text(item) for item in data]
        return data
    if data.dtype.kind in "OSU":
        return [_text(item) for item in data.ravel().tolist()]
    if data.size <= _LIST_LIMIT:
        flat: list[Any] = data.ravel().tolist()
        return flat
    if data.dtype.kind == "f" and data.dtype.itemsize != 8:
        data = data.astype(np.float64)
    return np.ascontiguousarray(data.ravel())


def to_raw(data: Array | list[Any], datatype: str) -> bytes:
    """Return the elements as a raw tensor of `datatype`.

    Raises:
        InvalidInput: The datatype is unknown.
    """
    dtype = dtype_of(datatype)
    if dtype.kind == "O":
        flat = data if isinstance(data, list) else data.ravel().tolist()
        return join_bytes([x if isinstance(x, bytes) else str(x).encode() for x in flat])
    array = np.asarray(data)
    return array.astype(dtype.newbyteorder("<"), copy=False).tobytes()
