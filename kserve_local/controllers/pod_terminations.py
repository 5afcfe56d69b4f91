"""Why a container ended, from its log: the text of `terminated.message`.

Reads the end of the log file and, for a taken port, who listens there. Blocking; call it in a
thread. The message is the container's own where it wrote one (terminationMessagePath). For one that
failed without it is what kubelet's FallbackToLogsOnError gives, whatever the policy, plus a line on
how the container ended where the log does not say why (a signal, its exit code), and a line
`Next step:`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_local.api import names
from kserve_local.controllers.addresses import holder_of
from kserve_local.controllers.pod_containers import limit_of
from kserve_local.controllers.pod_faults import (
    Ended,
    diagnose,
    exited,
    is_address_taken,
    killed_by,
    tail,
    wanted_address,
)
from kserve_local.interfaces.backend import ContainerStatus

_WINDOW = 16 * 1024
_LIVENESS = "its liveness probe failed"


@dataclass(frozen=True, slots=True)
class LogFile:
    """A log file at one moment."""

    number: int = 0
    size: int = 0

    @classmethod
    def at(cls, path: Path) -> LogFile:
        """Return the file as it is now."""
        try:
            found = path.stat()
        except OSError:
            return cls()
        return cls(found.st_ino, found.st_size)

    def offset_in(self, later: LogFile) -> int:
        """Return where what was written since begins: a backend may begin a new file for a run."""
        same = self.number == later.number and later.size >= self.size
        return self.size if same else 0


def read_end(path: Path, offset: int) -> str:
    """Return the end of a log file, only what was written after `offset`; empty if unreadable."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            # A rotated file is shorter than the offset: everything in it is new.
            begin = offset if offset <= size else 0
            file.seek(max(begin, size - _WINDOW))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _port_holder(ip: str, status: ContainerStatus, log: str) -> str:
    """Return who listens on the port that the log says is taken, or on one of the Pod's."""
    named = wanted_address(log)
    ports = [*status.ports.values()] or [names.DEFAULT_PORT]
    candidates = [named] if named is not None else [(ip, port) for port in ports]
    found = (holder_of(host, port) for host, port in candidates)
    return next((who for who in found if who), "")


def message_of(status: ContainerStatus, explained: str) -> str:
    """Return `terminated.message`.

    Args:
        explained: What `explain` says.
    """
    if status.termination or status.exit_code == 0:
        return status.termination
    return explained


def explain(
    container: Mapping[str, Any],
    status: ContainerStatus,
    log_path: Path,
    *,
    offset: int,
    ip: str,
    source: bool,
    unhealthy: bool = False,
) -> str:
    """Return the last log lines, what the backend knows, and the next step.

    Args:
        offset: Where this run's output begins in the log.
        ip: The Pod's address.
        source: The container runs local source of the user.
        unhealthy: It was killed because its liveness probe failed.
    """
    log = tail(read_end(log_path, offset))
    memory = limit_of(container, "memory")
    ended = Ended(
        reason=status.reason or ("Completed" if status.exit_code == 0 else "Error"),
        exit_code=status.exit_code,
        image=str(container.get("image") or ""),
        source=source,
        own_command=bool(container.get("command")),
        signal=status.signal,
        killed_for=_LIVENESS if unhealthy else status.message if status.signal == 9 else "",
        memory_limit_bytes=int(memory) if memory else None,
        holder=_port_holder(ip, status, log) if is_address_taken(log) else "",
    )
    lines = [log] if log else []
    if status.message and status.message not in log:
        lines.append(status.message)
    how = killed_by(ended) or exited(ended, "\n".join(lines))
    if how:
        lines.append(how)
    if unhealthy:
        lines.append(_LIVENESS)
    step = diagnose(ended, f"{log}\n{status.message}")
    if step:
        lines.append(f"Next step: {step}")
    return "\n".join(lines)
