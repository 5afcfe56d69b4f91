"""A client of the Debug Adapter Protocol, as an IDE is one: requests, responses, events."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from pathlib import Path
from typing import Any

TIMEOUT = 20.0


class DapClient:
    """One connection to a debug adapter."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection((host, port), timeout=TIMEOUT)
        self._socket.settimeout(None)
        self._file = self._socket.makefile("rb")
        self._sent = 0
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._kept: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, name="dap-client", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while True:
                length = 0
                while line := self._file.readline().strip():
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                if not length:
                    break
                self._messages.put(json.loads(self._file.read(length)))
        except OSError:
            pass
        self._messages.put(None)

    def _wait(self, kind: str, name: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return the next message of this kind and name; what comes before it is kept."""
        field = "event" if kind == "event" else "command"
        for n, kept in enumerate(self._kept):
            if (kept["type"], kept.get(field)) == (kind, name):
                return self._kept.pop(n)
        while True:
            message = self._messages.get(timeout=timeout)
            assert message is not None, f"the adapter hung up before {kind} {name}"
            if (message["type"], message.get(field)) == (kind, name):
                return message
            self._kept.append(message)

    def send(self, command: str, **arguments: Any) -> None:
        """Send a request."""
        self._sent += 1
        body = json.dumps(
            {"seq": self._sent, "type": "request", "command": command, "arguments": arguments}
        ).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    def request(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the body of its response, which must be a success."""
        self.send(command, **arguments)
        answer = self._wait("response", command)
        assert answer["success"], answer
        return dict(answer.get("body") or {})

    def event(self, name: str) -> dict[str, Any]:
        """Return the body of the next event of this name."""
        return dict(self._wait("event", name).get("body") or {})

    def attach(self, file: Path, *lines: int) -> None:
        """Attach, set breakpoints, and let the program run."""
        self.request("initialize", adapterID="tests", pathFormat="path", linesStartAt1=True)
        self.send("attach", justMyCode=True)
        self.event("initialized")
        breakpoints = [{"line": line} for line in lines]
        found = self.request("setBreakpoints", source={"path": str(file)}, breakpoints=breakpoints)
        assert all(b["verified"] for b in found["breakpoints"]), found
        self.request("configurationDone")
        self._wait("response", "attach")

    def stopped(self) -> dict[str, Any]:
        """Wait for a breakpoint; return the event's body."""
        return self.event("stopped")

    def stopped_within(self, seconds: float) -> int:
        """Return the thread that stops at a breakpoint in this time.

        Raises:
            TimeoutError: None did.
        """
        try:
            return int(self._wait("event", "stopped", seconds)["body"]["threadId"])
        except queue.Empty:
            raise TimeoutError from None

    def top_frame(self, thread: int) -> dict[str, Any]:
        """Return the frame that a stopped thread is in."""
        found = self.request("stackTrace", threadId=thread)["stackFrames"]
        return dict(found[0])

    def resume(self, thread: int) -> None:
        """Let everything run on."""
        self.request("continue", threadId=thread)

    def close(self) -> None:
        """Hang up without a word, as a killed IDE does."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(TIMEOUT)
        self._file.close()
        self._socket.close()
