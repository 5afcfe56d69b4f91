"""The client of the Kubernetes API: what CLI, TUI and dev loop use, and nothing else of the system.

Asynchronous; objects go in and come out as plain JSON dictionaries. Failures are our own errors,
made from the server's `Status`, so that the CLI knows exit code and message.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from kserve_local.api import scheme
from kserve_local.api.meta import Object, WatchEvent
from kserve_local.api.scheme import ResourceType
from kserve_local.client.http import Http, Reply
from kserve_local.client.kubeconfig import Access, read
from kserve_local.errors import Cause, KServeLocalError, NotFound, TimedOut, from_status

MANAGER = "kserve-local"
_TIMEOUT = 60.0

Objects = list[Object]  # `list` inside the class is the method


class Client:
    """One API server. Use as `async with Client.from_kubeconfig(path) as client`.

    Args:
        access: Where it is and how to get in.
        on_warning: Called with each `Warning` text of the server.
    """

    def __init__(self, access: Access, *, on_warning: Callable[[str], None] | None = None) -> None:
        self.access = access
        self._on_warning = on_warning
        headers = {
            "Authorization": f"Bearer {access.token}",
            "User-Agent": MANAGER,
        }
        self._http = Http(access.server, ca=access.ca, headers=headers)

    @classmethod
    def from_kubeconfig(
        cls, path: Path, *, on_warning: Callable[[str], None] | None = None
    ) -> Client:
        """Return a client for the current context.

        Raises:
            ServiceUnavailable: There is no such file.
            Invalid: It cannot be used.
        """
        return cls(read(path), on_warning=on_warning)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that are kept for the next request."""
        await self._http.close()

    async def get(self, kind: ResourceType, name: str, namespace: str | None = None) -> Object:
        """Return one object.

        Raises:
            NotFound: There is none.
        """
        answer: Object = await self.call("GET", self.path(kind, name, namespace))
        return answer

    async def find(
        self, kind: ResourceType, name: str, namespace: str | None = None
    ) -> Object | None:
        """Return one object, None if there is none."""
        try:
            return await self.get(kind, name, namespace)
        except NotFound:
            return None

    async def list(
        self,
        kind: ResourceType,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
    ) -> Objects:
        """Return the objects of a kind.

        Args:
            namespace: None: all namespaces.
            labels / fields: Selectors as kubectl takes them.
        """
        return (await self.list_at(kind, namespace=namespace, labels=labels, fields=fields))[0]

    async def list_at(
        self,
        kind: ResourceType,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
    ) -> tuple[Objects, int]:
        """Return the objects and the resourceVersion to watch from."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        found = await self.call("GET", self.path(kind, "", namespace, everywhere=True), query=query)
        return found["items"], int(found["metadata"]["resourceVersion"])

    async def watch(
        self,
        kind: ResourceType,
        *,
        namespace: str | None = None,
        since: int | None = None,
        labels: str = "",
        fields: str = "",
        seconds: int | None = None,
        accept: str = "application/json",
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield changes until the server ends the stream; close it with `contextlib.aclosing`.

        Args:
            since: After this resourceVersion; None: first an ADDED for everything there is.
            seconds: Have the server end the stream after this time.
            accept: As in `call`; the event's object may so be a table of one row.

        Raises:
            Gone: `since` is too old, or the client fell behind: list again.
            ServiceUnavailable: The server went away.
        """
        query = {
            "watch": "true",
            "resourceVersion": "" if since is None else str(since),
            "labelSelector": labels,
            "fieldSelector": fields,
            "timeoutSeconds": "" if seconds is None else str(seconds),
        }
        path = _with_query(self.path(kind, "", namespace, everywhere=True), query)
        async with self._http.request("GET", path, accept=accept) as reply:
            await self._check(reply)
            async for line in _lines(reply.chunks()):
                change = json.loads(line)
                obj = change["object"]
                if change["type"] == "ERROR":
                    raise _error(obj, 500)
                version = int(obj["metadata"]["resourceVersion"])
                yield WatchEvent(change["type"], obj, version)

    async def create(
        self, obj: Object, *, dry_run: bool = False, field_validation: str = "Warn"
    ) -> Object:
        """Create an object and return it as stored.

        Raises:
            AlreadyExists: The name is taken.
            Invalid: It breaks its schema.
            Forbidden: A webhook refused it.
        """
        kind = scheme.of(obj)
        path = self.path(kind, "", _namespace(obj), version=_version(obj))
        query = _write_query(dry_run, field_validation)
        answer: Object = await self.call("POST", path, body=obj, query=query)
        return answer

    async def replace(self, obj: Object, *, dry_run: bool = False) -> Object:
        """Replace an object; custom kinds need its resourceVersion.

        Raises:
            Conflict: It has changed meanwhile.
        """
        path = self._path_of(obj)
        answer: Object = await self.call("PUT", path, body=obj, query=_write_query(dry_run, "Warn"))
        return answer

    async def patch(
        self,
        kind: ResourceType,
        name: str,
        patch: Any,
        namespace: str | None = None,
        *,
        type_: Literal["merge", "json", "strategic"] = "merge",
        subresource: str = "",
    ) -> Object:
        """Patch an object and return it."""
        media = {
            "merge": "application/merge-patch+json",
            "json": "application/json-patch+json",
            "strategic": "application/strategic-merge-patch+json",
        }
        path = self.path(kind, name, namespace)
        if subresource:
            path += f"/{subresource}"
        query = _write_query(False, "Warn")
        answer: Object = await self.call(
            "PATCH", path, body=patch, query=query, media_type=media[type_]
        )
        return answer

    async def apply(
        self,
        obj: Object,
        *,
        manager: str = MANAGER,
        dry_run: bool = False,
        field_validation: str = "Warn",
    ) -> tuple[Object, Literal["created", "configured", "unchanged"]]:
        """Make the server's object be like `obj`: create it, or change what `obj` says.

        Server-side apply, forced: fields that an earlier `apply` set and this one leaves out are
        removed; those of others stay.

        Raises:
            Invalid: It breaks its schema.
            Forbidden: A webhook refused it.
        """
        path = self._path_of(obj)
        try:
            before = await self.call("GET", path)
        except NotFound:
            before = None
        query = {**_write_query(dry_run, field_validation), "force": "true"}
        query["fieldManager"] = manager
        media_type = "application/apply-patch+yaml"
        after = await self.call("PATCH", path, body=obj, query=query, media_type=media_type)
        if before is None:
            return after, "created"
        # Not by resourceVersion: a controller may write the status between the two requests.
        same = _own(before) == _own(after)
        return after, "unchanged" if same else "configured"

    async def delete(
        self,
        kind: ResourceType,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
        grace: float | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Delete an object; return it, while it is still ending, or the `Status`.

        Raises:
            NotFound: There is none.
        """
        options: dict[str, Any] = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": propagation,
        }
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if dry_run:
            options["dryRun"] = ["All"]
        answer: Object = await self.call("DELETE", self.path(kind, name, namespace), body=options)
        return answer

    async def logs(
        self,
        pod: str,
        namespace: str | None = None,
        *,
        container: str = "",
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        previous: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """Yield a container's output as it arrives; close it with `contextlib.aclosing`.

        Args:
            since: Only what may have been written in the last so many seconds, rounded up.

        Raises:
            NotFound: No such Pod.
            BadRequest: No such container or run.
        """
        query = {
            "container": container,
            "follow": "true" if follow else "",
            "tailLines": "" if tail is None else str(tail),
            "sinceSeconds": "" if since is None else str(max(1, math.ceil(since))),
            "previous": "true" if previous else "",
        }
        path = _with_query(f"{self.path(scheme.POD, pod, namespace)}/log", query)
        async with self._http.request("GET", path) as reply:
            await self._check(reply)
            async for chunk in reply.chunks():
                yield chunk

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[Any, None]:
        """Yield the JSON documents of an answer that has one a line, as they arrive.

        Close it with `contextlib.aclosing`.
        """
        async with self._http.request("GET", _with_query(path, query)) as reply:
            await self._check(reply)
            async for line in _lines(reply.chunks()):
                yield json.loads(line)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        media_type: str = "application/json",
        accept: str = "application/json",
        seconds: float = _TIMEOUT,
    ) -> Any:
        """Send one request and return the JSON that comes back.

        Args:
            accept: `application/json;as=Table;v=v1;g=meta.k8s.io` asks for a table.

        Raises:
            KServeLocalError: What the server's `Status` says.
            TimedOut: No whole answer within `seconds`.
        """
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.request(
                    method,
                    _with_query(path, query or {}),
                    body=data,
                    media_type=media_type,
                    accept=accept,
                ) as reply,
            ):
                await self._check(reply)
                content = await reply.body()
        except TimeoutError as error:
            raise TimedOut(
                f"{method} {path}: no answer from {self.access.server} in {seconds:g} s"
            ) from error
        if not reply.header("content-type").startswith("application/json"):
            return content.decode(errors="replace")
        return json.loads(content)

    def path(
        self,
        kind: ResourceType,
        name: str = "",
        namespace: str | None = None,
        *,
        version: str = "",
        everywhere: bool = False,
    ) -> str:
        """Return the URL path of a kind's object or collection.

        Args:
            namespace: None: the kubeconfig's, or with `everywhere` all.
            version: None of the kind's: its storage version.
        """
        version = version or kind.versions[0]
        path = f"/apis/{kind.group}/{version}" if kind.group else f"/api/{version}"
        if kind.namespaced and not (everywhere and namespace is None):
            path += f"/namespaces/{quote(namespace or self.access.namespace, safe='')}"
        path += f"/{kind.plural}"
        return f"{path}/{quote(name, safe='')}" if name else path

    def _path_of(self, obj: Object) -> str:
        name = str(obj["metadata"].get("name") or "")
        return self.path(scheme.of(obj), name, _namespace(obj), version=_version(obj))

    async def _check(self, reply: Reply) -> None:
        if self._on_warning is not None:
            for name, value in reply.headers:
                if name == "warning":
                    self._on_warning(_warning(value))
        if reply.status < 400:
            return
        content = await reply.body()
        try:
            status = json.loads(content)
        except ValueError:
            status = {}
        if not isinstance(status, dict) or "message" not in status:
            status = {"message": content.decode(errors="replace")[:500] or f"HTTP {reply.status}"}
        raise _error(status, reply.status)


def _own(obj: Object) -> Object:
    """Return what clients say of an object: no status, nothing that the server counts."""
    server = {"managedFields", "resourceVersion", "generation"}
    metadata = {k: v for k, v in obj["metadata"].items() if k not in server}
    return {**{k: v for k, v in obj.items() if k != "status"}, "metadata": metadata}


def _error(status: Mapping[str, Any], code: int) -> KServeLocalError:
    error = from_status(
        int(status.get("code") or code),
        str(status.get("reason") or ""),
        str(status.get("message") or ""),
    )
    error.causes = tuple(
        Cause(str(c.get("reason", "")), str(c.get("message", "")), str(c.get("field", "")))
        for c in (status.get("details") or {}).get("causes") or ()
    )
    return error


def _warning(header: str) -> str:
    """Return the text of `299 - "text"`."""
    text = header.partition('"')[2].rpartition('"')[0]
    return text.replace('\\"', '"').replace("\\\\", "\\")


def _namespace(obj: Object) -> str | None:
    return (obj.get("metadata") or {}).get("namespace") or None


def _version(obj: Object) -> str:
    return str(obj["apiVersion"]).rpartition("/")[2]


def _write_query(dry_run: bool, field_validation: str) -> dict[str, str]:
    return {
        "fieldManager": MANAGER,
        "fieldValidation": field_validation,
        "dryRun": "All" if dry_run else "",
    }


def _with_query(path: str, query: Mapping[str, str]) -> str:
    given = {k: v for k, v in query.items() if v}
    return f"{path}?{urlencode(given)}" if given else path


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async with contextlib.aclosing(chunks) as opened:  # type: ignore[type-var] # generators close
        async for chunk in opened:
            *complete, rest = (rest + chunk).split(b"\n")
            for line in complete:
                if line.strip():
                    yield line
