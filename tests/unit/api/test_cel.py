"""CEL rules: every one we ship compiles, and missing keys are told as Kubernetes tells them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api import cel, schema


def shipped() -> list[str]:
    """Return every rule in the compiled schema file."""
    found: set[str] = set()
    file = Path(schema.__file__).with_name("schemas.json")
    waiting: list[Any] = [json.loads(file.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            found.update(r["rule"] for r in node.get("x-kubernetes-validations", ()))
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return sorted(found)


@pytest.mark.parametrize("rule", shipped())
def test_every_shipped_rule_runs(rule: str) -> None:
    """A rule the evaluator cannot run would refuse every object that it looks at."""
    for value in ({}, [], ""):
        said = cel.failure(rule, value, value, message="m")
        assert said is None or "parse" not in said
        assert "Undefined" not in (said or "")


def test_there_are_rules_to_run() -> None:
    assert len(shipped()) > 40


def test_a_rule_that_holds_says_nothing() -> None:
    assert cel.failure("self.a > 1 && self.b.exists(x, x == 'y')", {"a": 2, "b": ["y"]}) is None


def test_a_rule_that_fails_says_its_message_or_itself() -> None:
    assert cel.failure("self > 1", 1, message="too small") == "too small"
    assert cel.failure("self > 1", 1) == "failed rule: self > 1"


def test_a_missing_key_is_an_error_not_a_crash() -> None:
    said = cel.failure("size(self.name) == 0", {}, message="m")
    assert said == "no such key: name evaluating rule: m"


def test_rules_about_the_old_value_pass_without_one() -> None:
    assert cel.failure("self == oldSelf", "b") is None
    assert cel.failure("self == oldSelf", "b", "a") == "failed rule: self == oldSelf"
    assert cel.failure("self == oldSelf", "b", "b") is None


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("self.matches('^a+$')", "aaa"),
        ("duration(self) > duration('90s')", "2m"),
        ("'*' in self && self.size() > 1", ["*", "a"]),
        ("self.all(p, self.exists_one(q, q.n == p.n))", [{"n": 1}, {"n": 2}]),
        ("self.filter(f, f.t == 'x').size() <= 1", [{"t": "x"}, {"t": "y"}]),
        ("has(self.a) && !has(self.b)", {"a": None, "c": 1}),
        ("self.startsWith('/') && !self.contains('//') && self.endsWith('.')", "/a."),
    ],
)
def test_functions_that_rules_use(rule: str, value: Any) -> None:
    assert cel.failure(rule, value) is None
