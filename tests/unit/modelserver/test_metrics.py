"""The hand-written metrics text is what Prometheus' own parsers read."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from modelserver.metrics import Registry, accepts_openmetrics


def registry() -> Registry:
    made = Registry()
    made.model("iris").predicted(0.001, 0.3, 20.0)
    made.model("iris").predicted(0.001, 0.005, 0.0)
    made.model('odd "name"\\').explained(0.1, 0.2, 0.3)
    return made


def test_prometheus_reads_the_text() -> None:
    """Counts are cumulative by bucket; labels are escaped."""
    families = {f.name: f for f in parse_text(registry().text(openmetrics=False).decode())}
    samples = {
        (s.name, s.labels.get("le"), s.labels.get("model_name")): s.value
        for s in families["request_predict_seconds"].samples
    }
    assert samples["request_predict_seconds_bucket", "0.005", "iris"] == 1
    assert samples["request_predict_seconds_bucket", "0.5", "iris"] == 2
    assert samples["request_predict_seconds_count", None, "iris"] == 2
    assert samples["request_predict_seconds_sum", None, "iris"] == 0.305
    explained = families["request_explain_seconds"].samples
    assert {s.labels["model_name"] for s in explained} == {'odd "name"\\'}
    post = families["request_postprocess_seconds"].samples
    assert [s.value for s in post if s.labels.get("le") == "+Inf"] == [2, 1]
    assert {"python_info", "process_open_fds"} <= families.keys()


def test_openmetrics_parsers_read_the_other_form() -> None:
    """They are strict about names and the end mark."""
    families = {f.name: f for f in parse_openmetrics(registry().text(openmetrics=True).decode())}
    assert families["request_predict_seconds"].type == "histogram"
    assert families["process_cpu_seconds"].type == "counter"


def test_series_appear_with_the_first_request() -> None:
    """Before, only the families are announced."""
    text = Registry().text(openmetrics=False).decode()
    assert "# TYPE request_predict_seconds histogram" in text
    assert "request_predict_seconds_count" not in text


def test_accept_chooses_the_form() -> None:
    """As a Prometheus server sends it."""
    assert accepts_openmetrics("application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert not accepts_openmetrics("text/plain")
    assert not accepts_openmetrics("")
