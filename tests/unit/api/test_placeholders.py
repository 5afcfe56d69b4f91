"""Placeholders in runtime containers: Go's html/template, control-plane.md 3.5."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.controllers.placeholders import TemplateError, render, replace

META: dict[str, Any] = {
    "name": "iris",
    "namespace": "prod",
    "labels": {"modelClass": "a.B", "x": "<b>&'\"+"},
    "annotations": {"modelFormat": "sklearn", "a/b": "slashed"},
}


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{.Name}}", "iris"),
        ("{{ .Namespace }}/{{.Name}}", "prod/iris"),
        ("{{.Labels.modelClass}}", "a.B"),
        ("{{.Annotations.modelFormat}}", "sklearn"),
        ("[{{.Labels.missing}}]", "[]"),
        ("{{.Labels.x}}", "&lt;b&gt;&amp;&#39;&#34;&#43;"),
        ("{{.GenerateName}}{{.UID}}", ""),
        ("a {{- .Name -}} b", "airisb"),
        ("a{{/* note */}}b", "ab"),
        ("{{index .Annotations `a/b`}}", "slashed"),
        ("{{if .Labels.modelClass}}y{{else}}n{{end}}", "y"),
        ("{{if .Labels.missing}}y{{else}}n{{end}}", "n"),
        ("{{if .Labels.missing}}y{{else if .Name}}{{.Name}}{{else}}n{{end}}", "iris"),
        ("${VAR} $(VAR) } {", "${VAR} $(VAR) } {"),
    ],
)
def test_render(text: str, rendered: str) -> None:
    """Values are HTML-escaped, missing map entries are empty."""
    assert render(text, META) == rendered


@pytest.mark.parametrize(
    "text",
    [
        "{{.Foo}}",
        "{{.Name.x}}",
        "{{.Labels}}",
        "{{ message['content'] }}",
        "{% for %}{{ x }}",
        "{{.Name",
        "{{end}}",
        "{{if .Name}}",
        "{{.Labels.a-b}}",
        "{{}}",
        "{{.ObjectMeta.Name}}",
    ],
)
def test_what_is_no_template_fails(text: str) -> None:
    """A chat template in args is one of these."""
    with pytest.raises(TemplateError):
        render(text, META)


def test_replace_walks_the_whole_container() -> None:
    """Args, env, image: everything that JSON holds."""
    container = {
        "name": "c",
        "image": "x/{{.Name}}",
        "args": ["--model_name={{.Name}}", "a < b && c"],
        "env": [{"name": "NS", "value": "{{.Namespace}}"}],
    }
    assert replace(container, META) == {
        "name": "c",
        "image": "x/iris",
        "args": ["--model_name=iris", "a < b && c"],
        "env": [{"name": "NS", "value": "prod"}],
    }


def test_without_labels_and_annotations() -> None:
    """Nil maps are empty maps."""
    bare = {"name": "iris"}
    container = {"args": ["{{.Labels.a}}{{.Annotations.b}}{{.Namespace}}"]}
    assert replace(container, bare) == {"args": [""]}


def test_quotes_inside_an_action_fail_as_upstream() -> None:
    """JSON escapes them before the template is parsed."""
    with pytest.raises(TemplateError):
        replace({"args": ['{{index .Labels "x"}}']}, META)


def test_a_value_that_breaks_the_json_fails() -> None:
    """A line break in an annotation."""
    broken = {"name": "iris", "annotations": {"a": "line\nbreak"}}
    with pytest.raises(TemplateError, match="make the container invalid"):
        replace({"args": ["{{.Annotations.a}}"]}, broken)
