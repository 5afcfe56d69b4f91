"""Tensors: every datatype over JSON and raw bytes, and what does not fit."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelserver import tensors
from modelserver.errors import InferenceError, InvalidInput

NUMERIC = sorted(tensors.DTYPES.keys() - {"BYTES"})


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_raw_tensors_keep_every_bit(datatype: str, data: st.DataObject) -> None:
    """Binary is the form for which NaN payloads and -0.0 must survive."""
    array = data.draw(
        hnp.arrays(tensors.DTYPES[datatype], hnp.array_shapes(min_side=0, max_dims=3))
    )
    raw = tensors.to_raw(array, datatype)
    again = tensors.from_raw(raw, datatype, list(array.shape))
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize("datatype", sorted(set(NUMERIC) - {"FP16"}))
@given(data=st.data())
def test_json_values_come_back_equal(datatype: str, data: st.DataObject) -> None:
    """FP32 is written as the double of the same value, so nothing is lost on the way."""
    dtype = tensors.DTYPES[datatype]
    elements = hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    array = data.draw(hnp.arrays(dtype, st.integers(0, 100), elements=elements))
    written = orjson.dumps(tensors.to_json(array, datatype), option=orjson.OPT_SERIALIZE_NUMPY)
    again = tensors.from_json(orjson.loads(written), datatype, list(array.shape))
    assert again.dtype == array.dtype
    assert np.array_equal(again, array)


def test_float32_keeps_its_value_in_json_whatever_the_size() -> None:
    """Short and long tensors take different ways to JSON and must look the same."""
    for count in (1, 200):
        array = np.full(count, 0.1, dtype=np.float32)
        text = orjson.dumps(tensors.to_json(array, "FP32"), option=orjson.OPT_SERIALIZE_NUMPY)
        assert set(orjson.loads(text)) == {0.10000000149011612}


@given(st.lists(st.text()))
def test_bytes_travel_as_length_prefixed_utf8(items: list[str]) -> None:
    """A raw BYTES tensor holds each element's length before its bytes."""
    array = np.array(items, dtype=np.object_)
    raw = tensors.to_raw(array, "BYTES")
    assert tensors.split_bytes(raw) == [item.encode() for item in items]
    assert tensors.from_raw(raw, "BYTES", [len(items)]).tolist() == items


def test_text_labels_become_bytes() -> None:
    """String classes of scikit-learn are fixed-width unicode."""
    assert tensors.datatype_of(np.array(["setosa"]).dtype) == "BYTES"
    assert tensors.to_json(np.array(["setosa", "é"]), "BYTES") == ["setosa", "é"]


def test_a_shape_may_leave_one_size_open() -> None:
    """One -1 is computed from the data."""
    assert tensors.from_json([1, 2, 3, 4], "INT32", [-1, 2]).shape == (2, 2)


def test_unknown_datatypes_are_the_clients_fault() -> None:
    """The text is KServe's, which never names the datatype."""
    with pytest.raises(InvalidInput, match="invalid datatype None in the input"):
        tensors.from_json([1], "FP128", [1])


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_integers_beyond_64_bits_are_refused_not_wrapped(value: int) -> None:
    """The JSON parser turns them into floats, which numpy would wrap without a word."""
    with pytest.raises(OverflowError):
        tensors.from_json([float(value)], "INT64", [1])


def test_bytes_that_are_no_text_are_named() -> None:
    """JSON cannot carry them; the message says what to ask for instead."""
    with pytest.raises(InferenceError, match="Please use binary_data=True"):
        tensors.to_json(np.array([b"\xff"], dtype=np.object_), "BYTES")


def test_dtypes_without_a_datatype_are_named() -> None:
    """Dates and complex numbers have no place in the protocol."""
    with pytest.raises(InvalidInput, match="complex128"):
        tensors.datatype_of(np.dtype(np.complex128))
