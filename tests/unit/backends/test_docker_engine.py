"""An engine that is not there."""

from __future__ import annotations

import gc
import socket
import warnings
from pathlib import Path

import pytest

from kserve_local.backends.docker_engine import Engine
from kserve_local.errors import Missing


@pytest.mark.parametrize("is_left_over", [False, True], ids=["none", "left over"])
async def test_nobody_at_the_socket_is_told_and_leaves_nothing_open(
    tmp_path: Path, is_left_over: bool
):
    path = tmp_path / "docker.sock"
    if is_left_over:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
    words = "connection refused" if is_left_over else "its socket does not exist"
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(Missing, match=words) as error:
            await Engine.connect({"DOCKER_HOST": f"unix://{path}"})
        del error
        gc.collect()
    assert [str(w.message) for w in seen if w.category is ResourceWarning] == []
