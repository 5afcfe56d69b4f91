"""The image of the container that holds a Pod's network while the Pod's own containers come and go.

Kubernetes' nodes have a "pause" container for this; an engine without a network cannot pull one, so
it is made here: one static program of a few instructions that sleeps until it is killed.
"""

from __future__ import annotations

import io
import struct
import tarfile

REPOSITORY = "kserve-local/pause"
TAG = "1"
IMAGE = f"{REPOSITORY}:{TAG}"

_LOADED_AT = 0x400000
_HEADERS = 64 + 56
# pause(), again and again: Linux system call 34.
_X86_64 = bytes.fromhex("b822000000 0f05 ebf7")
# ppoll(0, 0, 0, 0), again and again: Linux system call 73, as arm64 has no pause().
_AARCH64 = struct.pack("<7I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003,
                       0xD2800928, 0xD4000001, 0x17FFFFFA)  # fmt: skip
_MACHINES = {
    "x86_64": (62, _X86_64),
    "amd64": (62, _X86_64),
    "aarch64": (183, _AARCH64),
    "arm64": (183, _AARCH64),
}


def program(architecture: str) -> bytes:
    """Return an ELF executable that sleeps for ever.

    Args:
        architecture: As an engine names its own: `x86_64`, `amd64`, `aarch64`, `arm64`.

    Raises:
        KeyError: There is none for that architecture.
    """
    machine, code = _MACHINES[architecture]
    size = _HEADERS + len(code)
    identity = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    # e_type EXEC, entry right behind the headers, one program header at 64, no sections.
    header = identity + struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, _LOADED_AT + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    # PT_LOAD, readable and executable.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOADED_AT, _LOADED_AT, size, size, 0x1000)
    return header + segment + code


def archive(architecture: str) -> bytes:
    """Return the image's file system as a tar archive: `/pause` and nothing else."""
    content = program(architecture)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        entry.size, entry.mode = len(content), 0o755
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
