"""Which registry logins a Pod's pull secrets give for an image."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from kserve_local.api.meta import Object
from kserve_local.controllers.pull_secrets import logins
from kserve_local.interfaces.backend import Login


def encoded(content: Any) -> str:
    return base64.b64encode(json.dumps(content).encode()).decode()


def secret(auths: dict[str, Any]) -> Object:
    return {"data": {".dockerconfigjson": encoded({"auths": auths})}}


def pod(*names: str) -> Object:
    return {"spec": {"imagePullSecrets": [{"name": name} for name in names]}}


def users(image: str, auths: dict[str, Any]) -> list[str]:
    found, _ = logins(pod("s"), image, {"s": secret(auths)}.get)
    return [login.username for login in found]


def entry(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:pass:word".encode()).decode()}


@pytest.mark.parametrize(
    ("key", "image", "fits"),
    [
        ("reg.io", "reg.io/a/b:1", True),
        ("https://reg.io/v2/", "reg.io/a/b:1", True),
        ("reg.io", "other.io/a/b:1", False),
        ("reg.io:5000", "reg.io/a/b:1", False),
        ("reg.io:5000", "reg.io:5000/a/b:1", True),
        ("reg.io/a", "reg.io/a/b:1", True),
        ("reg.io/c", "reg.io/a/b:1", False),
        ("*.reg.io", "eu.reg.io/a:1", True),
        ("*.reg.io", "reg.io/a:1", False),
        ("*.reg.io", "a.eu.reg.io/a:1", False),
        ("https://index.docker.io/v1/", "python:3", True),
        ("https://index.docker.io/v1/", "docker.io/me/x", True),
        ("index.docker.io", "reg.io/python:3", False),
        ("localhost:5000", "localhost:5000/x", True),
    ],
)
def test_a_key_covers_images_as_kubelet_says(key: str, image: str, fits: bool) -> None:
    assert users(image, {key: entry("me")}) == (["me"] if fits else [])


def test_the_most_exact_key_comes_first() -> None:
    auths = {"reg.io": entry("all"), "reg.io/team": entry("team")}
    assert users("reg.io/team/x:1", auths) == ["team", "all"]


def test_user_and_password_may_be_given_apart_and_in_the_old_form() -> None:
    old = {"data": {".dockercfg": encoded({"reg.io": {"username": "u", "password": "p"}})}}
    found, missing = logins(pod("gone", "old"), "reg.io/x", {"old": old}.get)
    assert found == (Login("u", "p"),)
    assert missing == ("gone",)
    assert "p'" not in repr(found)
    auth, _ = logins(pod("s"), "reg.io/x", {"s": secret({"reg.io": entry("me")})}.get)
    assert auth == (Login("me", "pass:word"),)


@pytest.mark.parametrize("content", ["", "bm8=", encoded([1]), encoded({"auths": {"reg.io": 1}})])
def test_what_is_no_login_is_none(content: str) -> None:
    broken = {"data": {".dockerconfigjson": content}}
    assert logins(pod("s"), "reg.io/x", {"s": broken}.get) == ((), ())
    bad = {"data": {".dockerconfigjson": encoded({"auths": {"reg.io": {"auth": "!"}}})}}
    assert logins(pod("s"), "reg.io/x", {"s": bad}.get) == ((), ())
