"""Kubernetes field errors, for webhooks that answer 422 with one cause per field.

Pure. Kinds and texts are k8s.io/apimachinery's `field.Error` and `errors.NewInvalid`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api.meta import Object
from kserve_local.errors import Cause

_REASONS = {
    "Invalid value": "FieldValueInvalid",
    "Required value": "FieldValueRequired",
    "Forbidden": "FieldValueForbidden",
    "Unsupported value": "FieldValueNotSupported",
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field. `value` shows only where its kind shows one."""

    path: str
    kind: str
    detail: str
    value: Any = None

    @property
    def body(self) -> str:
        """The message without the path, as in `causes[].message`."""
        if self.kind in ("Required value", "Forbidden"):
            return f"{self.kind}: {self.detail}"
        if isinstance(self.value, str):
            shown = json.dumps(self.value, ensure_ascii=False)
        elif self.value is None:
            shown = '"null"'
        else:
            shown = json.dumps(self.value, ensure_ascii=False, separators=(",", ":"))
        return f"{self.kind}: {shown}: {self.detail}"

    def __str__(self) -> str:
        return f"{self.path}: {self.body}"


def invalid(path: str, value: Any, detail: str) -> FieldError:
    """Return an error about a value that is there."""
    return FieldError(path, "Invalid value", detail, value)


def required(path: str, detail: str) -> FieldError:
    """Return an error about a value that is missing."""
    return FieldError(path, "Required value", detail)


def forbidden(path: str, detail: str) -> FieldError:
    """Return an error about a field that may not be set."""
    return FieldError(path, "Forbidden", detail)


def unsupported(path: str, value: Any, detail: str) -> FieldError:
    """Return an error about a value, or a change, that is not supported."""
    return FieldError(path, "Unsupported value", detail, value)


def joined(errors: Sequence[FieldError]) -> str:
    """Return the errors as one text: alone as it is, several in brackets, repeats left out."""
    texts = list(dict.fromkeys(str(error) for error in errors))
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


class FieldErrors(Exception):
    """Several wrong fields; the dispatcher of the webhooks makes an `Invalid` of them."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(joined(errors))
        self.errors = tuple(errors)

    @property
    def causes(self) -> list[Cause]:
        """Return one `details.causes[]` entry per error."""
        return [Cause(_REASONS[e.kind], e.body, e.path) for e in self.errors]

    def message_for(self, obj: Object) -> str:
        """Return `errors.NewInvalid`'s message for the object."""
        group = str(obj["apiVersion"]).rpartition("/")[0]
        kind = f"{obj['kind']}.{group}" if group else str(obj["kind"])
        return f'{kind} "{obj["metadata"].get("name", "")}" is invalid: {joined(self.errors)}'
