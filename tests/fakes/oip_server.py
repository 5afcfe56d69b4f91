"""A tiny model server for tests: answers the Open Inference Protocol's health calls and one model.

It can be slow to start, slow to answer, deaf to SIGTERM, crash, fill memory, start workers, and
tell what it sees. Standard library only, so it runs in any interpreter. Started like KServe's own.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the command line asked for."""

    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    begun = time.monotonic()

    def do_GET(self) -> None:
        """Health, readiness and what the process sees of itself."""
        if self.path == "/facts":
            self._answer(200, facts())
        elif self.path.startswith("/resolve?"):
            try:
                found = socket.gethostbyname(self.path.partition("?")[2])
            except OSError:
                found = ""
            self._answer(200, {"address": found})
        elif self.path == "/environment":
            self._answer(200, dict(os.environ))
        elif self.path in ("/v2/health/live", "/"):
            self._answer(500 if os.path.exists(self.options.sick_file) else 200, {"live": True})
        elif self.path in ("/v2/health/ready", f"/v1/models/{self.options.model_name}"):
            ready = time.monotonic() - self.begun >= self.options.ready_after
            ready = ready and not os.path.exists(self.options.unready_file)
            self._answer(200 if ready else 503, {"ready": ready})
        else:
            self._answer(404, {"error": self.path})

    def do_POST(self) -> None:
        """Echo the inputs after the chosen delay."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(self.options.delay)
        self._answer(200, {"model_name": self.options.model_name, "outputs": body.get("inputs")})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Log to stdout, one line a request."""
        say("request " + format % args)


def say(line: str) -> None:
    """Write a line to stdout, as user code may: without flushing."""
    sys.stdout.write(line + "\n")


def facts() -> dict[str, object]:
    """Return what tests ask about the process."""
    return {
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "argv": sys.argv,
        "path": sys.path,
        "cwd": os.getcwd(),
        "main": getattr(sys.modules["__main__"], "__file__", ""),
        "threads": len(threading.enumerate()),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "random": __import__("random").random(),
        "modules": sorted(name for name in sys.modules if "." not in name),
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; strict, as user code may be."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--http_port", type=int, default=8080)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--model_name", default="model")
    parser.add_argument("--model_dir", default="")
    parser.add_argument("--start_after", type=float, default=0.0)
    parser.add_argument("--ready_after", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--sick_file", default="")
    parser.add_argument("--unready_file", default="")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--exit", type=int, default=None)
    parser.add_argument("--fill_mib", type=int, default=0)
    parser.add_argument("--daemon", action="store_true", help="start a child in its own session")
    return parser.parse_args(argv)


def main() -> None:
    """Serve, or fail as asked."""
    options = parse()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(f"starting {options.model_name}")
    time.sleep(options.start_after)
    if options.exit is not None:
        say("leaving")
        sys.exit(options.exit)
    if options.daemon:
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
        )
    held = bytearray()
    if options.fill_mib:
        threading.Thread(target=_fill, args=(held, options.fill_mib), daemon=True).start()
    Handler.options = options
    http.server.ThreadingHTTPServer((options.host, options.http_port), Handler).serve_forever()


def _fill(held: bytearray, mib: int) -> None:
    for _ in range(mib):
        held += b"\x01" * (1 << 20)
        time.sleep(0.001)


if __name__ == "__main__":
    main()
