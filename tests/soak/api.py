"""Calls of a project's API, without a process each as the command line would cost."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

from tests.integration.project import Project, wait_until


def connection(project: Project) -> tuple[http.client.HTTPSConnection, str]:
    """Return a connection to the API and its token.

    Raises:
        OSError: The project does not run.
    """
    url = urlsplit(project.run_file["api"]["url"])
    context = ssl.create_default_context(cafile=str(project.state / "tls" / "ca.crt"))
    token = (project.state / "run" / "token").read_text()
    host, port = str(url.hostname), url.port
    return http.client.HTTPSConnection(host, port, timeout=10, context=context), token


def call(project: Project, method: str, path: str) -> Any:
    """Call the API, again while it is on its way back; return the answer's body."""

    def once() -> Any:
        try:
            api, token = connection(project)
            api.request(method, path, headers={"Authorization": f"Bearer {token}"})
            answer = api.getresponse()
            body = answer.read()
            api.close()
        except (OSError, http.client.HTTPException):
            return None
        return (answer.status, json.loads(body))

    status, body = wait_until(once, timeout=30, why=f"{method} {path}: the API does not answer")
    assert status < 300, body
    return body


def status(project: Project) -> dict[str, Any]:
    """Return what `status --json` shows."""
    return dict(call(project, "GET", "/apis/kserve-local.dev/v1/status"))
