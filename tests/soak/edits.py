"""The saves that `saves` makes: what each changes, how it is written, how a broken one looks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.soak.saved_project import (
    COUNTS,
    EXTRA,
    IRIS,
    SHIFT,
    World,
    model_bytes,
    overwrite,
    put,
)

MODEL_FILE = "model/model.joblib"


@dataclass(frozen=True, slots=True)
class Edit:
    """One good save.

    Args:
        kind: What kind of save, for people.
        service: Whose answers show it.
        field: What of the world counts up.
        file: The file that is written.
        in_place: The process that answered before goes on, with the new code.
        slow: The file is written in pieces.
    """

    kind: str
    service: str
    field: str
    file: str
    in_place: bool = False
    slow: bool = False

    def apply(self, world: World, number: int) -> World:
        """Return the world after it."""
        if self.field == "extra":
            return replace(world, extra=not world.extra)
        if self.field == "replicas":
            return replace(world, replicas=3 - world.replicas)
        values: dict[str, Any] = {self.field: number}
        return replace(world, **values)


METHOD = Edit("method", COUNTS, "answer", "model.py", in_place=True)
HELPER = Edit("helper of a method", COUNTS, "word", "words.py", in_place=True)
TRANSFORMER = Edit("method of a transformer", SHIFT, "shift", "shift.py", in_place=True)
LOAD = Edit("load()", COUNTS, "weight", "model.py")
LOADED = Edit("helper of load()", COUNTS, "base", "weights.py")
INIT = Edit("__init__ of a transformer", SHIFT, "origin", "shift.py")
MODEL = Edit("model file, renamed", IRIS, "model", MODEL_FILE)
SLOW_MODEL = Edit("model file, written slowly", IRIS, "model", MODEL_FILE, slow=True)
PLACE = Edit("YAML: env", COUNTS, "place", "counts.yaml")
REPLICAS = Edit("YAML: minReplicas", COUNTS, "replicas", "counts.yaml")
ADD_OR_REMOVE = Edit("YAML: a service more or less", EXTRA, "extra", "extra.yaml")


@dataclass(frozen=True, slots=True)
class Broken:
    """A save that breaks a file; the old answers go on, and the next good save mends it.

    Args:
        mend: The good save after it, of the same file.
        spoil: Makes the broken text of the one before and a number.
        told: What `status` has to say besides the file.
        with_line: `status` names the line, too.
    """

    kind: str
    mend: Edit
    spoil: Callable[[str, int], str]
    told: str
    with_line: bool = True


def _cut(text: str, number: int) -> str:
    """Return the text as a save leaves it that has come half way: an open bracket, no end."""
    return text[: text.index('"predictions": [') + 17]


def _add(line: str, after: str) -> Callable[[str, int], str]:
    """Return what puts a line behind the first that holds `after`."""

    def spoil(text: str, number: int) -> str:
        head, found, tail = text.partition(after)
        assert found, f"no {after!r} in {text}"
        rest, _, more = tail.partition("\n")
        return f"{head}{found}{rest}\n{line.format(number=number)}\n{more}"

    return spoil


def _swap(old: str, new: str) -> Callable[[str, int], str]:
    def spoil(text: str, number: int) -> str:
        assert old in text, f"no {old!r} in {text}"
        return text.replace(old, new, 1)

    return spoil


BROKEN = (
    Broken("syntax error", METHOD, _swap("headers=None):", "headers=None)"), "SyntaxError"),
    Broken("half-written file", METHOD, _cut, "SyntaxError"),
    Broken("empty file", HELPER, lambda text, number: "", "empty", with_line=False),
    Broken("import error", LOADED, lambda text, number: f"import no_such_{number}\n{text}",
           "ModuleNotFoundError"),
    Broken("exception in load()", LOAD,
           _add('        raise ValueError("bad weights {number}")', "def load"), "ValueError"),
    Broken("transformer: syntax error", TRANSFORMER, _swap("self.ready = True", "self.ready ="),
           "SyntaxError"),
    Broken("transformer: exception", INIT,
           _add("        raise RuntimeError({number})", "super().__init__"), "RuntimeError"),
    Broken("corrupt model", MODEL, lambda text, number: f"no model {number}" * 100, "",
           with_line=False),
    Broken("YAML syntax", PLACE, _swap('"spec": {', '"spec": {{'), ""),
    Broken("YAML refused", PLACE, _swap('"minReplicas": ', '"minReplicas": -'), "MinReplicas"),
)  # fmt: skip
SHARES: Mapping[Edit, int] = {
    METHOD: 22, HELPER: 10, TRANSFORMER: 10, LOAD: 8, LOADED: 5, INIT: 4, MODEL: 6, SLOW_MODEL: 6,
    PLACE: 5, REPLICAS: 4, ADD_OR_REMOVE: 4,
}  # fmt: skip
"""Of a hundred saves; the rest are broken ones and those that mend them, each kind in turn."""


def deck(count: int, chance: random.Random) -> Sequence[Edit | Broken]:
    """Return what to save, in order: `count` saves, a broken one and its mending being two."""
    good = [edit for edit, share in SHARES.items() for _ in range(max(1, share * count // 100))]
    bad: list[Broken] = []
    while len(good) + 2 * len(bad) < count:
        bad.append(BROKEN[len(bad) % len(BROKEN)])
    made: list[Edit | Broken] = [*good, *bad]
    chance.shuffle(made)
    return made


def content(world: World, file: str, padding: bytes) -> bytes | None:
    """Return what a file holds in a world; None: it is not there."""
    if file == MODEL_FILE:
        return model_bytes(world.model, padding)
    text = world.files().get(file)
    return None if text is None else text.encode()


def save(path: Path, data: bytes | None, chance: random.Random, *, slow: bool) -> None:
    """Write a file as editors and trainers do: put in place, or written into in pieces."""
    if data is None:
        path.unlink()
    elif slow:
        overwrite(path, data, pauses=4, pause=0.1)
    elif not path.exists() or chance.random() < 0.5:
        put(path, data)
    else:
        overwrite(path, data)
