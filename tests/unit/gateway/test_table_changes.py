"""A table that comes as a change of the one before is that table, to the last look-up."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.gateway.table import CompiledTable
from kserve_local.interfaces.routing import (
    Endpoint,
    Route,
    RouteTable,
    Target,
    change_of,
    changed_table,
    table_from_wire,
)

NAMES = ("a", "b", "c", "d")


def route(name: str, state: str = "zero", host: str = "") -> Route:
    places = (Endpoint("pod", "127.0.0.1", 8080),) if state == "ready" else ()
    target = Target(f"default/{name}-1", 100, places, state)
    host = host or name
    hosts = (f"{host}.default.example.com", f"{host}.default.svc")
    return Route(
        "default", name, "predictor", hosts, (target,), f"/serving/default/{host}", (host,)
    )


ROUTES = st.builds(
    route, st.sampled_from(NAMES), st.sampled_from(("zero", "ready")), st.sampled_from(("", "x"))
)
# What is drawn once may stand in many tables: most routes of the next one are the same objects.
HISTORIES = st.lists(ROUTES, min_size=1, max_size=6).flatmap(
    lambda pool: st.lists(
        st.lists(st.sampled_from(pool), max_size=6, unique_by=id), min_size=2, max_size=6
    )
)


def looked_up(table: CompiledTable) -> dict[str, object]:
    """Everything that a table answers."""
    models = {m: [c.route for c in cs] for m, cs in table.by_model.items() if cs}
    return {
        "version": table.version,
        "routes": [c.route for c in table.routes],
        "hosts": {h: c.route for h, c in table.by_host.items()},
        "paths": {p: c.route for p, c in table.by_path.items()},
        "models": models,
        "only": table.only.route if table.only is not None else None,
        "foreign": repr(table.find(b"x.default.example.com", b"/serving/default/a/v1")),
    }


@given(HISTORIES)
def test_changes_lead_to_the_same_tables(history: list[list[Route]]) -> None:
    sent = RouteTable(1, tuple(history[0]), {"127.64.0.1": "local"})
    there = table_from_wire(orjson.loads(orjson.dumps(sent)))
    compiled = CompiledTable(there)
    for number, routes in enumerate(history[1:], start=2):
        table = RouteTable(number, tuple(routes), {"127.64.0.1": str(number)})
        there = changed_table(there, orjson.loads(orjson.dumps(change_of(sent, table))))
        sent = table
        assert there == table_from_wire(orjson.loads(orjson.dumps(table)))
        compiled = compiled.following(there)
        fresh = CompiledTable(there)
        assert looked_up(compiled) | {"foreign": ""} == looked_up(fresh) | {"foreign": ""}
        assert [c.found.route is c for c in compiled.routes] == [True] * len(routes)


def test_what_is_the_same_is_sent_as_a_run() -> None:
    many = tuple(route(f"s{n}") for n in range(1000))
    changed = replace(many[500], targets=())
    after = RouteTable(2, (*many[:500], changed, *many[501:]))
    change = change_of(RouteTable(1, many), after)
    assert change.routes == ((0, 500), changed, (501, 1000))


def test_unchanged_routes_keep_what_was_compiled() -> None:
    first = CompiledTable(RouteTable(1, tuple(route(n) for n in NAMES)))
    routes = list(first.table.routes)
    routes[1] = route("b", "ready")
    second = first.following(RouteTable(2, (*routes, route("e"))))
    kept = [a is b for a, b in zip(first.routes, second.routes, strict=False)]
    assert kept == [True, False, True, True]
    assert second.by_host[b"b.default.svc"].route.targets[0].state == "ready"
    assert first.by_host[b"b.default.svc"].route.targets[0].state == "zero"
    assert second.by_host[b"e.default.svc"] is second.routes[-1]


def test_a_change_of_another_table_is_refused() -> None:
    change = change_of(RouteTable(3), RouteTable(4))
    with pytest.raises(ValueError, match="a change of table 3, not of 2"):
        changed_table(RouteTable(2), orjson.loads(orjson.dumps(change)))
