"""The store's journal: one SQLite file, one writer thread, group commit.

The writer thread takes whatever writes have queued up, commits them in one transaction and reports
them; nobody is told of a write before its commit. WAL with `synchronous=NORMAL`: a commit survives
the death of the process at any moment, not a power cut. What lies in the file is read once, at
start, from a connection that cannot write (a copy when a write-ahead log must be replayed first),
so that a damaged or newer file is found before anything could change it. Only one process may own
the file: an exclusive lock on `<file>.lock` says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import shutil
import sqlite3
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from kserve_local.api import scheme
from kserve_local.api.meta import Key, Object
from kserve_local.errors import StateDamaged, StateLocked

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x6B736C31  # "ksl1"
_BATCH = 512
_COPY = ".state-copy-"

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS objects (
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (resource, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sequence (
    id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL
);
INSERT OR IGNORE INTO sequence VALUES (1, 0);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One write: the object's JSON as stored from `sequence` on, or None when it is gone.

    Args:
        epoch: Writes of an epoch that failed are refused until the store has begun a new one,
            because they were computed from state that never reached the disk.
    """

    epoch: int
    sequence: int
    key: Key
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the file held at start."""

    sequence: int
    objects: Sequence[tuple[Key, Object]]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the right to be the only process that uses the database at `path`.

    Raises:
        StateLocked: Another process holds it; the message names its pid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StateLocked(
                f"{path}: in use by process {holder}; one supervisor at a time may own a project's "
                f"state, stop that one first (kserve-local down)"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def load(path: Path) -> Loaded:
    """Return everything in the database at `path` without changing a byte of it.

    A missing or empty file is an empty store.

    Raises:
        StateDamaged: Not our database, damaged, or written by a newer version.
    """
    if not path.exists() or (path.stat().st_size == 0 and not _has_log(path)):
        return Loaded(0, ())
    try:
        if not _has_log(path):
            return _read(path, f"file:{_quoted(path)}?mode=ro&immutable=1")
        # The main file alone may be half way through a checkpoint: let SQLite replay the log, but
        # in a copy, since a reader of the original would write its -shm and perhaps its -wal.
        # Beside the original: it holds Secrets, and a kill in here must leave nothing elsewhere.
        for stale in path.parent.glob(f"{_COPY}*"):
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_COPY, dir=path.parent) as folder:
            copy = Path(folder) / "state.db"
            shutil.copyfile(path, copy)
            for log, target in zip(_logs(path), _logs(copy), strict=True):
                if log.exists():
                    shutil.copyfile(log, target)
            return _read(path, f"file:{_quoted(copy)}?mode=rw")
    except sqlite3.Error as error:
        raise StateDamaged(_damaged(path, str(error))) from error


def _has_log(path: Path) -> bool:
    return any(log.exists() and log.stat().st_size > 0 for log in _logs(path))


def _logs(path: Path) -> tuple[Path, Path]:
    # The rollback journal exists only for the moment in which a new file turns to WAL.
    return Path(f"{path}-wal"), Path(f"{path}-journal")


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _damaged(path: Path, why: str) -> str:
    why = " ".join(why.split())  # SQLite's verdict may have several lines
    return (
        f"{path}: the state database is damaged ({why}) and was left untouched; restore it from a "
        f"backup, or move {path.name} and {path.name}-wal away to start empty"
    )


def _read(path: Path, uri: str) -> Loaded:
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and application == 0 and tables == 0:
            return Loaded(0, ())
        if application != _APPLICATION_ID:
            raise StateDamaged(_damaged(path, "not a database of kserve-local"))
        if version > SCHEMA_VERSION:
            raise StateDamaged(
                f"{path}: written by a newer kserve-local (schema {version}, this one knows "
                f"{SCHEMA_VERSION}) and was left untouched; upgrade kserve-local, or move "
                f"{path.name} away to start empty"
            )
        verdict = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != ("ok",):
            raise StateDamaged(_damaged(path, str(verdict[0]) if verdict else "no verdict"))
        row = database.execute("SELECT value FROM sequence WHERE id = 1").fetchone()
        if row is None:
            raise StateDamaged(_damaged(path, "its sequence is missing"))
        objects = []
        query = "SELECT resource, namespace, name, body, checksum FROM objects"
        for resource, namespace, name, body, checksum in database.execute(query):
            key = Key(resource, namespace, name)
            try:
                # SQLite checks its own structure only; a flipped bit in a body is ours to find.
                if zlib.crc32(body) != checksum:
                    raise ValueError("its checksum is another one")
                obj = orjson.loads(body)
                readable = resource not in scheme.BY_ID or scheme.key_of(obj) == key
            except Exception as error:
                raise StateDamaged(_damaged(path, f"{key} cannot be read: {error}")) from error
            if not readable:
                raise StateDamaged(_damaged(path, f"{key} holds another object"))
            objects.append((key, obj))
        return Loaded(int(row[0]), objects)


class Journal:
    """The open database. `submit` from any thread; commits are reported on the writer thread.

    Args:
        report: Called with each batch, in order, once it is on disk, or with the error that kept
            it from getting there. Must not block.
    """

    def __init__(
        self, path: Path, report: Callable[[Sequence[Record], Exception | None], None]
    ) -> None:
        self._path = path
        self._report = report
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._opened: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-journal", daemon=True)
        self._refused_epoch = -1

    def open(self) -> None:
        """Start the writer thread and wait until it has the file open for writing.

        Raises:
            StateDamaged: It cannot be opened for writing.
        """
        self._thread.start()
        error = self._opened.get()
        if error is not None:
            self._thread.join()
            raise StateDamaged(f"{self._path}: cannot be opened for writing: {error}") from error

    def submit(self, record: Record) -> None:
        """Queue one write; its commit is reported later."""
        self._queue.put(record)

    def close(self) -> None:
        """Commit what is queued, fold the log into the file and end the thread. Blocks."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        try:
            database = _open_for_writing(self._path)
        except (sqlite3.Error, OSError) as error:
            self._opened.put(error)
            return
        self._opened.put(None)
        last = False
        while not last:
            batch = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < _BATCH:
                    batch.append(self._queue.get_nowait())
            last = batch[-1] is None
            self._commit(database, [r for r in batch if r is not None])
        with contextlib.suppress(sqlite3.Error):
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()

    def _commit(self, database: sqlite3.Connection, batch: Sequence[Record]) -> None:
        current = [r for r in batch if r.epoch > self._refused_epoch]
        if not current:
            return
        try:
            database.execute("BEGIN IMMEDIATE")
            for record in current:
                key = record.key
                if record.body is None:
                    database.execute(_DELETE, (key.resource, key.namespace, key.name))
                else:
                    body = record.body
                    row = (key.resource, key.namespace, key.name, body, zlib.crc32(body))
                    database.execute(_UPSERT, row)
            database.execute("UPDATE sequence SET value = ?", (current[-1].sequence,))
            database.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            self._refused_epoch = current[-1].epoch
            self._report(current, error)
        else:
            self._report(current, None)


_UPSERT = (
    "INSERT INTO objects VALUES (?, ?, ?, ?, ?) ON CONFLICT (resource, namespace, name) "
    "DO UPDATE SET body = excluded.body, checksum = excluded.checksum"
)
_DELETE = "DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?"


def _open_for_writing(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version < SCHEMA_VERSION:
            database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database
