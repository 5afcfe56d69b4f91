"""Containers for tests of services of several components: who was asked, and with what.

`mirror.py` answers every request with its own name and what it saw. `hop.py` is a transformer or an
explainer of the real SDK that only asks the predictor. A request whose body says `WHO:MODE` breaks
the mirror of that name in that way; it reads the same in JSON and in a gRPC message. A mirror that
is started with a mode is always so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MIRROR = """
import http.server, json, re, signal, socketserver, sys, threading, time, urllib.request

WHO = sys.argv[1]
MODE = sys.argv[2] if sys.argv[2:] and not sys.argv[2].startswith("--") else ""
REST = b"HTTP/1.1 400 Bad Request\\r\\nContent-Length: 0\\r\\n\\r\\n"
NOISE = b"\\x16\\x03\\x01 not what was asked for\\r\\n\\r\\n" * 4

def mode_of(body):
    found = re.search(WHO.encode() + rb":([a-z]+)", body)
    return found.group(1).decode() if found else MODE

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        mode = mode_of(body)
        seen = {"who": WHO, "path": self.path, "body": body.decode(),
                "headers": {k.lower(): v for k, v in self.headers.items()}}
        status = 200
        data = json.dumps(seen).encode()
        if mode == "garbage":
            data = b"<html>not a model server</html>"
        elif WHO == "transformer" and (url := re.search(rb'"ask": "([^"]+)"', body)):
            # Code of one's own that passes no header on.
            data = urllib.request.urlopen(url.group(1).decode(), b"{}").read()
        elif mode == "slow":
            time.sleep(30)
        elif mode == "missing":
            status, data = 404, b'{"error": "no such path"}'
        elif mode == "broken":
            status, data = 503, b'{"detail": "out of sorts"}'
        elif mode in ("gone", "noise"):
            self.wfile.write(NOISE if mode == "noise" else b"")
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *args):
        print(WHO, self.path, flush=True)

class NoGrpc(socketserver.BaseRequestHandler):
    \"\"\"What a gRPC port may be instead of one.\"\"\"

    def handle(self):
        data = b""
        while piece := self.request.recv(65536):
            data += piece
            mode = mode_of(data)
            if mode == "slow":
                data = b""  # the next call on this connection may have an answer
            elif mode:
                self.request.sendall({"rest": REST, "noise": NOISE}.get(mode, b""))
                return

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

# The first process of a container hears no signal that it does not ask for.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if "--grpc" in sys.argv:
    threading.Thread(target=Server(("0.0.0.0", 8081), NoGrpc).serve_forever, daemon=True).start()
port = 8085 if "--http_port=8085" in sys.argv else 8080
http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
"""

HOP = """
import argparse

import kserve

class Hop(kserve.Model):
    def __init__(self, name):
        super().__init__(name)
        self.ready = True

    async def explain(self, payload, headers=None):
        return await self.predict(payload, headers)

parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
args, _ = parser.parse_known_args()
if __name__ == "__main__":
    kserve.ModelServer().start([Hop(args.model_name)])
"""

IMAGES = {"example/mirror:dev": "mirror.py", "example/hop:dev": "hop.py"}


def mirror(who: str, *args: str, **more: Any) -> dict[str, Any]:
    """A component that tells what it was asked."""
    container = {
        "name": "kserve-container", "image": "example/mirror:dev", "args": [who, *args],
    }  # fmt: skip
    return {"containers": [container], **more}


def hop(*args: str, **more: Any) -> dict[str, Any]:
    """A transformer or explainer that passes on to the predictor."""
    container: dict[str, Any] = {"name": "kserve-container", "image": "example/hop:dev"}
    if args:
        container["args"] = list(args)
    return {"containers": [container], **more}


def pair() -> dict[str, Any]:
    """A transformer of the SDK and a mirror in one Pod."""
    (beside,) = mirror("predictor", "--http_port=8085")["containers"]
    caller = {
        "name": "transformer-container", "image": "example/hop:dev",
        "args": [
            "--model_name=pair", "--predictor_host=localhost:8085", "--http_port=8080",
            "--predictor_request_timeout_seconds=2",
        ],
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
    }  # fmt: skip
    return {"containers": [beside, caller]}


def write(folder: Path, *others: dict[str, Any], **services: dict[str, Any]) -> Path:
    """Write a project of these services (name -> spec), other objects, and its images."""
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
    manifest = {"apiVersion": "v1", "kind": "List", "items": [*items, *others]}
    (folder / "services.yaml").write_text(json.dumps(manifest))
    images = {n: {"context": ".", "command": ["python", f]} for n, f in IMAGES.items()}
    (folder / "kserve-local.yaml").write_text(json.dumps({"images": images}))
    return folder
