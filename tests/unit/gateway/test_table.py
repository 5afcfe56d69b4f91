"""Host, path, model -> route."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.gateway.table import CompiledTable, Found, Missed, NeedsModel, model_of
from kserve_local.interfaces.routing import Route, RouteTable, Target


def route(name: str, *models: str, hosts: tuple[str, ...] = (), entry: bool = True) -> Route:
    hosts = hosts or (f"{name}.default.example.com", f"{name}.default.localhost")
    path = f"/serving/default/{name}" if entry else ""
    return Route(
        "default", name, "predictor", hosts, (Target(f"default/{name}", 100),), path, models
    )


TWO = CompiledTable(RouteTable(1, (route("iris", "iris"), route("wine", "wine", "both"))))
ONE = CompiledTable(
    RouteTable(
        1,
        (
            route("iris", "iris"),
            route("iris", hosts=("iris-predictor.default.example.com",), entry=False),
        ),
    )
)


@pytest.mark.parametrize(
    ("host", "target", "name", "cut"),
    [
        (b"iris.default.example.com", b"/anything", "iris", 0),
        (b"wine.default.localhost", b"/", "wine", 0),
        (b"localhost", b"/serving/default/wine/v1/models", "wine", 21),
        (b"example.com", b"/serving/default/wine", "wine", 21),
        (b"localhost", b"/serving/default/wine?x", "wine", 21),
        (b"localhost", b"/v1/models/iris:predict", "iris", 0),
        (b"localhost", b"/v1/models/iris:explain", "iris", 0),
        (b"localhost", b"/v1/models/wine", "wine", 0),
        (b"127.0.0.1", b"/v2/models/wine/versions/1/infer", "wine", 0),
        (b"[::1]", b"/v2/models/%77ine/ready", "wine", 0),
        (b"", b"/v2/repository/models/wine/load", "wine", 0),
        (b"host.docker.internal", b"/openai/v1/models/both", "wine", 0),
    ],
)
def test_a_request_finds_its_route(host: bytes, target: bytes, name: str, cut: int) -> None:
    found = TWO.find(host, target)
    assert isinstance(found, Found)
    assert (found.route.route.service, found.cut) == (name, cut)


WITH_EXPLAINER = CompiledTable(
    RouteTable(
        1,
        (
            replace(route("iris", "iris"), component="transformer", explain=(Target("e", 100),)),
            replace(
                route("x", hosts=("iris-predictor.default.example.com",), entry=False),
                names_service=False,
            ),
        ),
    )
)


@pytest.mark.parametrize(
    ("host", "target", "component"),
    [
        ("iris.default.example.com", "/v1/models/iris:explain", "explainer"),
        ("iris.default.example.com", "/v1/models/iris:explain?a=b", "explainer"),
        ("iris.default.example.com", "/v1/models/i_r-1:explain", "explainer"),
        ("localhost", "/serving/default/iris/v1/models/iris:explain", "explainer"),
        ("localhost", "/v1/models/iris:explain", "explainer"),
        # The cluster's rule is a regular expression over the raw path of the first protocol.
        ("iris.default.example.com", "/v1/models/iris.v2:explain", "transformer"),
        ("iris.default.example.com", "/v1/models/ir%69s:explain", "transformer"),
        ("iris.default.example.com", "/v1/models/iris:explain/", "transformer"),
        ("iris.default.example.com", "/v1/models/iris:explainx", "transformer"),
        ("iris.default.example.com", "/a/v1/models/iris:explain", "transformer"),
        ("iris.default.example.com", "/v2/models/iris/explain", "transformer"),
        ("iris.default.example.com", "/v1/models/iris:predict", "transformer"),
        ("iris.default.example.com", "/inference.GRPCInferenceService/ModelInfer", "transformer"),
        ("localhost", "/serving/default/iris/v1/models/iris:predict", "transformer"),
        # A component's own host leads to that component only.
        ("iris-predictor.default.example.com", "/v1/models/iris:explain", "predictor"),
    ],
)
def test_explain_goes_to_the_explainer(host: str, target: str, component: str) -> None:
    found = WITH_EXPLAINER.find(host.encode(), target.encode())
    assert isinstance(found, Found)
    assert found.route.route.component == component
    assert found.route.ids == (("e",) if component == "explainer" else found.route.ids)


def test_only_the_service_as_a_whole_tells_replicas_its_name() -> None:
    """The headers are set by the cluster's rule for the service, none of a component's own."""
    entry, component = WITH_EXPLAINER.routes
    assert entry.explain is not None
    assert b"KServe-Isvc-Name: iris" in entry.explain.lines
    assert entry.fields == entry.explain.fields != ()
    assert (component.lines, component.fields) == (b"", ())


def test_a_held_explain_follows_its_own_route_into_the_next_table() -> None:
    entry = WITH_EXPLAINER.routes[0]
    assert entry.explain is not None
    assert WITH_EXPLAINER.successor(entry.explain.route) is entry.explain
    assert WITH_EXPLAINER.successor(entry.route) is entry
    assert ONE.successor(entry.explain.route) is ONE.routes[0]


@pytest.mark.parametrize(
    ("host", "target"),
    [
        (b"iris.other.example.com", b"/v1/models/iris"),
        (b"example.com", b"/v1/models/iris:predict"),
        (b"localhost", b"/serving/default/nope/v1"),
        (b"rebound.evil.test", b"/serving/default/iris/v1"),
        (b"localhost", b"/serving/default/winery/v1"),
        (b"localhost", b"/v1/models/nope"),
        (b"localhost", b"/v1/models"),
        (b"localhost", b"/v2/health/ready"),
        (b"localhost", b"/"),
    ],
)
def test_a_request_for_nobody_misses(host: bytes, target: bytes) -> None:
    missed = TWO.find(host, target)
    assert isinstance(missed, Missed)
    assert "iris.default.example.com" in missed.hint


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/models",
        b"/v2",
        b"/",
        b"/v2/health/ready",
        b"/openai/v1/completions",
        b"/v1/models/other",
    ],
)
def test_with_one_service_the_short_form_is_all_its_own(target: bytes) -> None:
    found = ONE.find(b"localhost", target)
    assert isinstance(found, Found)
    assert found.route.route.hosts[0] == "iris.default.example.com"


def test_the_reserved_paths_are_nobodys_unless_the_host_says_so() -> None:
    assert isinstance(ONE.find(b"localhost", b"/-/metrics"), Missed)
    assert isinstance(ONE.find(b"iris.default.example.com", b"/-/metrics"), Found)


def test_with_a_token_any_name_may_be_this_machine() -> None:
    table = CompiledTable(TWO.table, any_host=True)
    assert isinstance(table.find(b"box.lan", b"/serving/default/iris/v1"), Found)
    assert isinstance(table.find(b"box.lan", b"/v1/models/iris"), Found)


def test_a_model_claimed_twice_is_not_guessed() -> None:
    table = CompiledTable(RouteTable(1, (route("a", "m"), route("b", "m"))))
    missed = table.find(b"localhost", b"/v2/models/m/infer")
    assert isinstance(missed, Missed)
    assert "default/a, default/b" in missed.text


def test_openai_paths_hang_on_the_body() -> None:
    for path in (b"/openai/v1/chat/completions", b"/v1/embeddings", b"/v1/rerank?x"):
        assert isinstance(TWO.find(b"localhost", path), NeedsModel)


def test_a_draw_follows_the_weights() -> None:
    targets = (Target("a", 10), Target("b", 0), Target("c", 90))
    table = CompiledTable(RouteTable(1, (Route("d", "s", "predictor", ("h",), targets),)))
    compiled = table.by_host[b"h"]
    assert compiled.ids == ("a", "c")
    draw = random.Random(1)
    picks = [compiled.ids[compiled.draw(draw.random())] for _ in range(1000)]
    assert 71 <= picks.count("a") <= 129
    assert compiled.draw(0.0) == 0
    assert compiled.draw(0.999999) == 1


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"a"}', "a"),
        (b'  {"x": [1, {"model": "no"}], "y": "\\"model\\"", "model" : "a\\u0062"}', "ab"),
        (b'{"messages":[{"content":"}]{"}],"model":"m"', "m"),
        (b'{"n":1,"t":true,"z":null,"model":"m","x":', "m"),
        (b'{"model":"unfinish', None),
        (b'{"mod', None),
        (b'{"a":12', None),
        (b'{"a":[', None),
        (b"", None),
        (b"   ", None),
        (b'{"model":1}', ""),
        (b'{"model":{"model":"x"}}', ""),
        (b"{}", ""),
        (b'{"a":1}', ""),
        (b"[]", ""),
        (b"model", ""),
        (b'{"a" 1}', ""),
    ],
)
def test_the_model_is_read_from_the_beginning_of_a_body(body: bytes, model: str | None) -> None:
    assert model_of(body) == model


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(st.text(), JSON, max_size=4),
    st.text(alphabet=st.characters(codec="ascii")),
    st.integers(0, 500),
)
def test_a_beginning_never_gives_another_model_than_the_whole(
    fields: dict[str, object], model: str, at: int
) -> None:
    fields.pop("model", None)
    body = json.dumps({**fields, "model": model, "after": 1}).encode()
    assert model_of(body) == model
    assert model_of(body[:at]) in (None, model)
