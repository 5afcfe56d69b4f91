"""Run files: what a later supervisor needs to find and adopt the replicas of an earlier one.

`run/pods/<uid>/.replica.json` holds the ReplicaSpec, `<container>.json` how a container was
started (podlauncher's input; the process adds its pid), `<container>.exit` how it ended.
`run/names/<namespace>.json` holds the host names that all replicas of a namespace resolve. Written
in one step each and readable by the owner only, for they hold the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kserve_local.interfaces.backend import ReplicaSpec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_ALIAS = ".alias"


@cache
def _spec() -> TypeAdapter[ReplicaSpec]:
    """Return the spec's JSON form. Imported late: zygotes start before pydantic is there."""
    from pydantic import TypeAdapter

    return TypeAdapter(ReplicaSpec)


def write(path: Path, content: bytes) -> None:
    """Replace `path` in one step, mode 0600."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Return a run file's content; empty if it is missing, empty or not JSON."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_launch(path: Path) -> dict[str, Any]:
    """Return how a container was started; empty if its run file is not one of ours.

    What it says leads to signals, so nothing of another type than we write is believed.
    """
    found = read(path)
    token, pid, start = found.get("token"), found.get("pid"), found.get("start_time")
    ports = found.get("ports", {})
    if not isinstance(token, str) or not token or not isinstance(ports, dict):
        return {}
    if pid is not None and (type(pid) is not int or pid <= 1):
        return {}
    # A number alone may be anybody by now; a marked process is known by the token it carries.
    if pid is not None and type(start) is not int and found.get("marked") is not True:
        return {}
    if not all(str(k).isdigit() and type(v) is int for k, v in ports.items()):
        return {}
    return found


class RunFiles:
    """The run files below one `run/pods` folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, replica: str) -> Path:
        """Return the replica's own folder."""
        return self.folder / replica

    def launch(self, replica: str, container: str) -> Path:
        """Return the path of a container's run file."""
        return self.of(replica) / f"{container}.json"

    def exit(self, replica: str, container: str) -> Path:
        """Return the path of the file that says how a container ended."""
        return self.of(replica) / f"{container}.exit"

    def termination(self, replica: str, container: str) -> Path:
        """Return the path of the file that holds a container's last words."""
        return self.of(replica) / f"{container}.termination"

    def names(self, namespace: str) -> Path:
        """Return the path of the file with the names that replicas of a namespace resolve."""
        return self.folder.parent / "names" / f"{namespace}.json"

    def save_names(self, namespace: str, names: Mapping[str, str]) -> None:
        """Write a namespace's names; makes their folder."""
        path = self.names(namespace)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(path, json.dumps(dict(names)).encode())

    def save(self, spec: ReplicaSpec) -> None:
        """Write the replica's spec; makes its folder."""
        self.of(spec.id).mkdir(parents=True, exist_ok=True, mode=0o700)
        write(self.of(spec.id) / ".replica.json", _spec().dump_json(spec))

    def alias(self, replica: str, other: str) -> None:
        """Remember under which other id a replica's containers were made."""
        write(self.of(replica) / _ALIAS, other.encode())

    def alias_of(self, replica: str) -> str:
        """Return what `alias` remembered, empty if nothing."""
        try:
            return (self.of(replica) / _ALIAS).read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def mark(self, name: str) -> None:
        """Leave a mark beside the replicas."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / name).touch(mode=0o600)

    def unmark(self, name: str) -> None:
        """Take a mark away."""
        (self.folder / name).unlink(missing_ok=True)

    def load(self) -> list[ReplicaSpec]:
        """Return the specs of all replicas that left run files; folders without one are removed."""
        found: list[ReplicaSpec] = []
        try:
            folders = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return found
        for folder in folders:
            if folder.name.startswith("."):
                continue  # a mark
            try:
                spec = _spec().validate_json((folder / ".replica.json").read_bytes())
                # Ids and names become paths: what a file says must not lead elsewhere.
                if spec.id != folder.name or any("/" in c.name for c in spec.containers):
                    raise ValueError("it is about another replica")
                found.append(spec)
            except (OSError, ValueError):
                # A start that died before its spec was written had started nothing yet.
                self.remove(folder.name)
        return found

    def remove(self, replica: str) -> None:
        """Remove everything about a replica."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.of(replica))
