"""Recorded traffic: the formats, and what is said of a line that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_local.errors import UsageError
from kserve_local.simulator.trace import Trace, read


def trace(tmp_path: Path, text: str) -> Trace:
    path = tmp_path / "trace"
    path.write_text(text)
    return read(path, "--trace")


@pytest.mark.parametrize(
    ("text", "arrivals", "services"),
    [
        ("0.5\n1.5\n", [0.5, 1.5], []),
        ("0.5,0.1\n1.5,200ms\n", [0.5, 1.5], [0.1, 0.2]),
        ("# recorded\n\ntimestamp,code,duration\n0,200,0.1\n3,500,0.2\n", [0, 3], [0.1, 0.2]),
        ("latency_ms,t\n41,1\n38,2\n", [1, 2], [0.041, 0.038]),
        ("time\n2026-01-01T00:00:00Z\n2026-01-01T00:00:02.5Z\n", [0, 2.5], []),
        ("timestamp\n1767225600\n1767225601\n", [0, 1], []),
        ("timestamp\n1767225600000\n1767225600250\n", [0, 0.25], []),
        ('{"timestamp": 0.0, "service_time": 0.1}\n{"timestamp": 2, "service_time": "50ms"}\n',
         [0, 2], [0.1, 0.05]),
        ("3,0.3\n1,0.1\n2,0.2\n", [1, 2, 3], [0.1, 0.2, 0.3]),
        ("\ufeff0.5\r\n1.5\r\n", [0.5, 1.5], []),
    ],
)  # fmt: skip
def test_requests_come_in_order(
    tmp_path: Path, text: str, arrivals: list[float], services: list[float]
) -> None:
    found = trace(tmp_path, text)
    assert list(found.arrivals) == arrivals
    assert list(found.services) == pytest.approx(services)
    assert found.duration == arrivals[-1]
    assert found.rate is None


def test_a_rate_holds_until_the_next_line(tmp_path: Path) -> None:
    found = trace(tmp_path, "timestamp,rate\n0,10\n60,25\n90,0\n")
    assert found.rate is not None
    assert [found.rate(t) for t in (0, 59, 60, 89, 91)] == [10, 10, 25, 25, 0]
    assert found.duration == 120


def test_a_count_is_spread_over_its_interval(tmp_path: Path) -> None:
    found = trace(tmp_path, '{"t": 0, "requests": 600}\n{"t": 60, "requests": 60}\n')
    assert found.rate is not None
    assert [found.rate(t) for t in (0, 60)] == [10, 1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no requests"),
        ("when,how\n1,2\n", ":2: no column is called timestamp"),
        ("timestamp,service_time\n0,0.1\n1,soon\n", r':3: "soon" is no number'),
        ("timestamp,service_time\n0,0.1\nlater,0.1\n", r':3: "later" is no time'),
        ("timestamp,service_time\n0,0.1\n1\n", r':3: "" is no number'),
        ("timestamp,service_time\n0,-1\n", ":2: -1 is less than nothing"),
        ('{"timestamp": 0}\n{"timestamp"\n', ":2: not JSON"),
        ("timestamp,rate\n0,10\n", "one rate"),
        ("timestamp,rate\n0,10\n0,20\n", "must rise"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"--trace.*{why}"):
        trace(tmp_path, text)


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "none", "--trace")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not text"):
        read(tmp_path / "binary", "--trace")
