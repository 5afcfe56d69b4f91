"""Containers for tests of services of several components: who was asked, and with what.

`mirror.py` answers every request with its own name and what it saw. `hop.py` is a transformer of
the real SDK without code of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MIRROR = """
import http.server, json, signal, sys, time

WHO = sys.argv[1]
MODE = sys.argv[2] if len(sys.argv) > 2 else ""

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        seen = {"who": WHO, "path": self.path, "body": body,
                "headers": {k.lower(): v for k, v in self.headers.items()}}
        status = 200
        data = json.dumps(seen).encode()
        if MODE == "garbage":
            data = b"<html>not a model server</html>"
        elif MODE == "slow":
            time.sleep(30)
        elif MODE == "missing":
            status, data = 404, b'{"error": "no such path"}'
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *args):
        print(WHO, self.path, flush=True)

# The first process of a container hears no signal that it does not ask for.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""

HOP = """
import argparse

import kserve

class Hop(kserve.Model):
    def __init__(self, name):
        super().__init__(name)
        self.ready = True

parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
args, _ = parser.parse_known_args()
if __name__ == "__main__":
    kserve.ModelServer().start([Hop(args.model_name)])
"""

IMAGES = {"example/mirror:dev": "mirror.py", "example/hop:dev": "hop.py"}


def mirror(who: str, mode: str = "", **more: Any) -> dict[str, Any]:
    """A component that tells what it was asked."""
    container = {
        "name": "kserve-container", "image": "example/mirror:dev",
        "args": [who, *([mode] if mode else [])],
    }  # fmt: skip
    return {"containers": [container], **more}


def hop(*args: str, **more: Any) -> dict[str, Any]:
    """A transformer that passes on to the predictor."""
    container: dict[str, Any] = {"name": "kserve-container", "image": "example/hop:dev"}
    if args:
        container["args"] = list(args)
    return {"containers": [container], **more}


def write(folder: Path, **services: dict[str, Any]) -> Path:
    """Write a project of these services (name -> spec) and its images."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mirror.py").write_text(MIRROR)
    (folder / "hop.py").write_text(HOP)
    items = [
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": name.replace("_", "-")},
            "spec": spec,
        }
        for name, spec in services.items()
    ]
    manifest = {"apiVersion": "v1", "kind": "List", "items": items}
    (folder / "services.yaml").write_text(json.dumps(manifest))
    images = {n: {"context": ".", "command": ["python", f]} for n, f in IMAGES.items()}
    (folder / "kserve-local.yaml").write_text(json.dumps({"images": images}))
    return folder
