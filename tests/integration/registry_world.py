"""A real registry (Debian's docker-registry) on the loopback."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kserve_local.interfaces.backend import Login

LOGIN = Login("ana", "s3cret")
# bcrypt of that password, as htpasswd -B writes it.
_HTPASSWD = "ana:$2y$04$abcdefghijklmnopqrstuuLZYjhNQAOdpbzt4WxWlUHjv1wsyH5DG\n"
_CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}
log: {{level: error}}
"""


@contextmanager
def registry_of_ana(folder: Path) -> Iterator[str]:
    """Give `host:port` of a registry that knows one user."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(_HTPASSWD)
    config = folder / "registry.yml"
    config.write_text(_CONFIG.format(folder=folder, port=port))
    process = subprocess.Popen(["docker-registry", "serve", str(config)])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            _wait(process, 0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
