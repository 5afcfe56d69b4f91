"""The YAML that a running object comes from: found, changed in one field, written back.

Where the object says its file (the annotation that `up` and `apply` write), that one; else a file
of the project that holds the same object. The file is replaced in one step, and only if it is still
what was read: an editor or another command may have saved it in between.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kserve_local.api import names, scheme
from kserve_local.api.manifest import Document, Path_, load
from kserve_local.api.manifest_edit import CannotEdit, with_value
from kserve_local.api.meta import Key, Object, annotations_of
from kserve_local.errors import Conflict, Invalid, KServeLocalError, UsageError
from kserve_local.project.manifest_files import STDIN
from kserve_local.project.project_files import mark, read_documents
from kserve_local.settings import Settings

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """One object in one file, as it was when it was read.

    Args:
        path: The file itself, links followed.
        shown: As a person calls it: relative to the project.
        content: Its bytes.
        text: The same, lines ended by a line feed.
        document: Where the object stands in it.
        object: What it holds, ready to be applied.
    """

    path: Path
    shown: str
    content: bytes
    text: str
    document: Document
    object: Object

    def changed(self, field: Path_, value: int | None, settings: Settings) -> Source:
        """Return the source with a field set (None: taken away); nothing is written.

        Raises:
            CannotEdit: The text does not allow it; the hint says what to do instead.
        """
        try:
            text = with_value(self.text, self.document, field, value)
        except CannotEdit as error:
            line, column = self.document.position_of(field)
            dotted = ".".join(map(str, field))
            by_hand = f"set {dotted} to {value}" if value is not None else f"take {dotted} out"
            raise CannotEdit(
                f"{self.shown}:{line}:{column}: {dotted} cannot be changed here: {error.message}",
                hint=f"{by_hand} by hand, then: kserve-local apply -f {self.shown}\n"
                "or change the running object only: --no-edit",
            ) from error
        found = _holding(load(text, str(self.path)), self.path, settings, self._key)
        assert found is not None  # the edit was checked
        document, obj = found
        return Source(self.path, self.shown, self._bytes(text), text, document, obj)

    @property
    def _key(self) -> Key:
        return scheme.key_of(self.object)

    def _bytes(self, text: str) -> bytes:
        ends = "\r\n" if b"\r\n" in self.content else "\n"
        head = _BOM if self.content.startswith(_BOM) else b""
        return head + text.replace("\n", ends).encode()

    def line_of(self, field: Path_) -> int:
        """Return the line of a field, or of what holds it."""
        return self.document.position_of(field)[0]


def write(before: Source, after: Source) -> None:
    """Replace the file's content.

    Raises:
        Conflict: It is not what was read any more; it was left alone.
        UsageError: It cannot be written.
    """
    path = before.path
    try:
        if path.read_bytes() != before.content:
            raise Conflict(
                f"{before.shown} has changed since it was read, and was left as it is",
                hint="save it, then run the command again",
            )
        _replace(path, after.content)
    except OSError as error:
        raise UsageError(
            f"{before.shown} cannot be written: {error.strerror}",
            hint="to change the running object only: --no-edit",
        ) from error


def _replace(path: Path, content: bytes) -> None:
    # A name that no watcher and no `up` takes for a manifest.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".kserve-local-", suffix="~")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def source_of(obj: Object, settings: Settings) -> Source | None:
    """Return where an object comes from, None if no file of the project holds it.

    Raises:
        Invalid: Its file is there and cannot be read.
    """
    key = scheme.key_of(obj)
    named = annotations_of(obj).get(names.MANIFEST, "")
    if named and (path := settings.project / named).is_file():
        found = _read(path, settings, key)
        if found is not None:
            return found
    for path in _files(settings):
        try:
            found = _read(path, settings, key)
        except Invalid:
            # Another file's fault is no reason not to change this object.
            continue
        if found is not None:
            return found
    return None


def _files(settings: Settings) -> Iterator[Path]:
    try:
        paths: Sequence[str] = list(read_documents(settings))
    except KServeLocalError:
        return
    for path in paths:
        if path != STDIN:
            yield Path(path)


def _read(path: Path, settings: Settings, key: Key) -> Source | None:
    real = path.resolve()
    shown = os.path.relpath(path, settings.project)
    try:
        content = real.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise Invalid(f"{shown} cannot be read: {error.strerror}", hint=_ONLY_RUNNING) from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{shown} is not UTF-8 text", hint=_ONLY_RUNNING) from error
    ends = text.count("\r\n")
    text = text.replace("\r\n", "\n")
    documents = load(text.replace("\r", "\n"), str(path))
    found = _holding(documents, path, settings, key)
    if found is None:
        broken = next((d.error for d in documents if d.error is not None), None)
        if broken is not None:
            line, column = broken.position
            raise Invalid(f"{shown}:{line}:{column}: {broken.message}", hint=_ONLY_RUNNING)
        return None
    if "\r" in text or (ends and ends != text.count("\n")):
        raise Invalid(f"{shown} mixes ways to end a line", hint=_ONLY_RUNNING)
    document, obj = found
    return Source(real, shown, content, text, document, obj)


_ONLY_RUNNING = "mend the file, or change the running object only: --no-edit"


def _holding(
    documents: Sequence[Document], path: Path, settings: Settings, key: Key
) -> tuple[Document, Object] | None:
    """Return the document that holds an object, and the object as `apply` would send it."""
    for document in documents:
        if document.error is not None or not document.is_kubernetes:
            continue
        try:
            kind = scheme.by_kind(document.object["apiVersion"], document.object["kind"])
            obj = mark(document.object, kind, str(path), settings)
            if obj["metadata"].get("name") and scheme.key_of(obj) == key:
                return document, obj
        except KServeLocalError:
            continue
    return None
