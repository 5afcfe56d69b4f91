"""Placeholders such as `{{.Name}}` in a runtime's container: the part of Go's `html/template`
that a container can use.

Pure text work. KServe serialises the merged container to JSON, runs it as an `html/template` with
the InferenceService's ObjectMeta and reads the JSON back (control-plane.md 3.5). So values are
HTML-escaped, a missing label or annotation is empty text, and any `{{ }}` a user writes, a chat
template say, is evaluated too and usually fails, quotes being escaped by the JSON around them.
Supported: field chains, `index` with back-quoted keys, `if`/`else`/`end`, comments and trim marks;
anything else is an error, as nearly all of it is upstream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kserve_local.errors import Invalid

# html/template's own table for text: `+` is in it because of UTF-7.
_ESCAPES = str.maketrans(
    {
        "\0": "\ufffd",
        '"': "&#34;",
        "&": "&amp;",
        "'": "&#39;",
        "+": "&#43;",
        "<": "&lt;",
        ">": "&gt;",
    }
)
# encoding/json escapes these so that JSON can stand inside HTML; the template sees them so.
_GO_JSON = (
    ("&", "\\u0026"),
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)
_TEXT_FIELDS = {
    "Name": "name",
    "GenerateName": "generateName",
    "Namespace": "namespace",
    "UID": "uid",
    "ResourceVersion": "resourceVersion",
    "Generation": "generation",
}
_MAP_FIELDS = {"Labels": "labels", "Annotations": "annotations"}
_ACTION = re.compile(r"\{\{(?P<left>-\s)?(?P<body>.*?)(?P<right>\s-)?\}\}", re.DOTALL)
_CHAIN = re.compile(r"(?:\.[A-Za-z_][A-Za-z_0-9]*)+")
_INDEX = re.compile(r"index\s+\.(?P<map>[A-Za-z]+)\s+`(?P<key>[^`]*)`")


class TemplateError(Invalid):
    """The text is no template that `html/template` would take, or its result is no JSON."""


def replace(container: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the container with its placeholders filled in from an object's `metadata`.

    Raises:
        TemplateError: Bad template, unknown field, or a value that breaks the JSON.
    """
    text = json.dumps(container, ensure_ascii=False, separators=(",", ":"))
    if "{{" not in text:
        return dict(container)
    for char, escaped in _GO_JSON:
        text = text.replace(char, escaped)
    rendered = render(text, metadata)
    try:
        result = json.loads(rendered)
    except ValueError as error:
        raise TemplateError(f"placeholder values make the container invalid: {error}") from error
    return dict(result)


def render(text: str, metadata: Mapping[str, Any]) -> str:
    """Return the template's text with every action carried out on `metadata`.

    Raises:
        TemplateError: As `replace`.
    """
    pieces = _pieces(text)
    out: list[str] = []
    end = _block(pieces, metadata, out, depth=0)
    if end is not None:
        raise TemplateError(f"unexpected {{{{{end}}}}}")
    return "".join(out)


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield `("text", ...)` and `("action", ...)` with trim marks applied, comments left out."""
    at, trim = 0, False
    for match in _ACTION.finditer(text):
        literal = text[at : match.start()]
        if trim:
            literal = literal.lstrip()
        if match["left"]:
            literal = literal.rstrip()
        if literal:
            yield "text", literal
        body = match["body"].strip()
        if not (body.startswith("/*") and body.endswith("*/")):
            yield "action", body
        at, trim = match.end(), bool(match["right"])
    rest = text[at:]
    if "{{" in rest:
        raise TemplateError("unclosed action")
    yield "text", rest.lstrip() if trim else rest


def _block(
    pieces: Iterator[tuple[str, str]], metadata: Mapping[str, Any], out: list[str], *, depth: int
) -> str | None:
    """Render until the block ends; return the action that ended it (`end`, `else ...`), if any."""
    for kind, body in pieces:
        if kind == "text":
            out.append(body)
            continue
        if body in ("end", "else") or body.startswith("else "):
            return body
        if body == "if" or body.startswith("if "):
            _condition(pieces, body[2:].strip(), metadata, out, depth=depth)
        else:
            out.append(_value(body, metadata).translate(_ESCAPES))
    if depth:
        raise TemplateError("unexpected EOF")
    return None


def _condition(
    pieces: Iterator[tuple[str, str]],
    test: str,
    metadata: Mapping[str, Any],
    out: list[str],
    *,
    depth: int,
) -> None:
    done = False
    while True:
        holds = not done and (test == "" or _value(test, metadata) != "")
        branch: list[str] = []
        end = _block(pieces, metadata, branch, depth=depth + 1)
        if holds:
            out.extend(branch)
            done = True
        if end == "end":
            return
        if end is None:
            raise TemplateError("unexpected EOF")
        test = end.removeprefix("else").strip().removeprefix("if").strip()


def _value(expression: str, metadata: Mapping[str, Any]) -> str:
    """Return the text of a field chain or an `index` of labels or annotations."""
    index = _INDEX.fullmatch(expression)
    if index is not None and index["map"] in _MAP_FIELDS:
        return str((metadata.get(_MAP_FIELDS[index["map"]]) or {}).get(index["key"], ""))
    if not _CHAIN.fullmatch(expression):
        raise TemplateError(f'cannot evaluate "{{{{{expression}}}}}"')
    head, *rest = expression[1:].split(".")
    if head == "ObjectMeta":
        raise TemplateError("can't evaluate field ObjectMeta in type v1.ObjectMeta")
    if head in _MAP_FIELDS and len(rest) == 1:
        return str((metadata.get(_MAP_FIELDS[head]) or {}).get(rest[0], ""))
    if head in _TEXT_FIELDS and not rest:
        value = metadata.get(_TEXT_FIELDS[head])
        return "" if value is None else str(value)
    raise TemplateError(f"can't evaluate field {expression[1:]} in type v1.ObjectMeta")
