"""Whether a model's rows are independent to the last bit, found by trying, so that requests that
wait together may be computed in one call.

A kernel may add up in another order for another number of rows; nothing in the file says so.
Random rows are computed alone and in company of many sizes, and every bit compared. Pure but for
the model's own run.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from time import thread_time
from typing import Any

import numpy as np

# Sizes around those at which kernels change their way, up to the server's largest call.
_SIZES = (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 129, 256, 511, 1024)
_ALONE = 48
_MAX_ELEMENTS = 4_000_000
# CPU seconds, so that a busy machine changes nothing. A model slower than this by itself gains
# little from company, and would delay the start.
_SECONDS_ALONE = 0.0003
_SECONDS = 0.15


def rows_are_independent(run: Callable[[Any], Any], row: tuple[int, ...], dtype: Any) -> bool:
    """Return whether `run` gives each row the same bits alone and in company of up to 1024.

    Args:
        run: Takes `(n, *row)`, returns `n` results along the first axis.
        row: Shape of one row.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "iufb" or prod(row) * max(_SIZES) > _MAX_ELEMENTS or 0 in row:
        return False
    pool = _pool((max(_SIZES), *row), dtype)
    try:
        alone = [run(pool[:1])]  # warms up
        started = thread_time()
        for at in range(1, _ALONE):
            alone.append(run(pool[at : at + 1]))
            if thread_time() - started > _SECONDS_ALONE * max(at, 4):
                return False
        for size in _SIZES:
            for first in (0, _ALONE // 2) if size < max(_SIZES) else (0,):
                if not _same(run(pool[first : first + size]), alone, first, size):
                    return False
            if thread_time() - started > _SECONDS:
                return False
    except Exception:  # a model may refuse random values; it then gets requests one by one
        return False
    return True


def _pool(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    generator = np.random.default_rng(0)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _same(together: Any, alone: list[Any], first: int, size: int) -> bool:
    """Whether the rows of one call equal those computed alone, as far as they were."""
    if together.shape[:1] != (size,):
        return False
    return all(
        together[at - first : at - first + 1].shape == alone[at].shape
        and together.dtype == alone[at].dtype
        and together[at - first : at - first + 1].tobytes() == alone[at].tobytes()
        for at in range(first, min(first + size, len(alone)))
    )
