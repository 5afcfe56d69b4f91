"""The verbs, for every kind alike: get, list, watch, create, update, patch, delete, subresources.

One handler serves all resource paths: `paths.parse` says what is meant, `admission` what may be
stored, the store does it. Answers follow the Kubernetes API conventions, Tables and dry runs
included.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from kserve_local.api import scheme, strategic_merge
from kserve_local.api.meta import Key, Object, parse_timestamp, timestamp, uid_of
from kserve_local.apiserver import apply, bodies, patch, selectors, tables, watch
from kserve_local.apiserver.admission import Admission, check_schema
from kserve_local.apiserver.errors import success
from kserve_local.apiserver.logs import LogOptions, LogReader, container_of
from kserve_local.apiserver.paths import UNKNOWN_PATH, Target
from kserve_local.errors import (
    AlreadyExists,
    BadRequest,
    Cause,
    Conflict,
    Invalid,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
)
from kserve_local.store import strategy
from kserve_local.store.store import Store

_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_APPLY = "application/apply-patch+yaml"
_PATCH_RETRIES = 5
_SERVER_OWNED = frozenset(
    {"creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"}
)
_DIGITS = 18  # of an int64
_TRUE = frozenset({"true", "1", "t"})


class Answer(Response):
    """An orjson-encoded object."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class Resources:
    """Handles requests for objects of one store."""

    def __init__(
        self,
        store: Store,
        admission: Admission,
        *,
        log_reader: LogReader | None,
        streams: watch.OpenStreams,
    ) -> None:
        self._store = store
        self._admission = admission
        self._logs = log_reader
        self._streams = streams

    async def handle(self, request: Request, target: Target) -> Response:
        """Carry out one request.

        Raises:
            KServeLocalError: As the API server would answer it.
        """
        query = {k: v for k, v in request.query_params.items() if k}
        method = request.method
        if target.subresource:
            return await self._subresource(request, target, query)
        if not target.name:
            if method == "GET":
                watched = _flag(query, "watch")
                return (
                    self._watch(request, target, query)
                    if watched
                    else self._list(request, target, query)
                )
            if method == "POST":
                return await self._create(request, target, query)
            if method == "DELETE":
                return await self._delete_collection(request, target, query)
        elif method == "GET":
            return self._get(request, target, query)
        elif method == "PUT":
            return await self._update(request, target, query)
        elif method == "PATCH":
            return await self._patch(request, target, query)
        elif method == "DELETE":
            return await self._delete(request, target, query)
        raise MethodNotAllowed("the server does not allow this method on the requested resource")

    # -- reading ----------------------------------------------------------------------------------

    def _get(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        obj = self._store.find(target.key)
        if obj is None:
            raise self._missing(target)
        if _wants_table(request):
            return Answer(self._table(target, query, [obj], obj["metadata"]["resourceVersion"]))
        return Answer(_in_version(target, obj))

    def _list(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        matches = self._selector(target, query)
        objects = self._store.list(target.kind.id, namespace=target.namespace)
        if matches is not None:
            objects = [obj for obj in objects if matches(obj)]
        version = str(self._store.resource_version)
        if _wants_table(request):
            return Answer(self._table(target, query, objects, version))
        return Answer(
            {
                "kind": f"{target.kind.kind}List",
                "apiVersion": target.api_version,
                "metadata": {"resourceVersion": version},
                "items": [_in_version(target, obj) for obj in objects],
            }
        )

    def _watch(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        text = query.get("resourceVersion", "")
        initial = _flag(query, "sendInitialEvents")
        since = None if initial or text in ("", "0") else _integer("resourceVersion", text)
        seconds = query.get("timeoutSeconds")
        table = _wants_table(request)

        def render(obj: Object) -> Object:
            if table:
                return self._table(target, query, [obj], obj["metadata"]["resourceVersion"])
            return _in_version(target, obj)

        def bookmark(version: int, ends_initial: bool) -> Object:
            if table:
                return self._table(target, query, [], str(version))
            metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
            if ends_initial:
                metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
            return {
                "kind": target.kind.kind,
                "apiVersion": target.api_version,
                "metadata": metadata,
            }

        stream = watch.lines(
            self._store,
            target,
            self._streams,
            since=since,
            matches=self._selector(target, query),
            render=render,
            bookmark=bookmark if _flag(query, "allowWatchBookmarks") else None,
            initial_bookmark=initial,
            seconds=float(_integer("timeoutSeconds", seconds)) if seconds else None,
        )
        return StreamingResponse(stream, media_type="application/json")

    def _selector(self, target: Target, query: Mapping[str, str]) -> selectors.Predicate | None:
        return selectors.both(
            selectors.label_selector(query.get("labelSelector", "")),
            selectors.field_selector(target.kind, query.get("fieldSelector", "")),
        )

    def _table(
        self, target: Target, query: Mapping[str, str], objects: list[Object], version: str
    ) -> Object:
        return tables.table(
            target.kind.id,
            objects,
            include=query.get("includeObject") or "Metadata",
            resource_version=version,
            now=tables.now(),
            api_version=target.api_version,
        )

    def _missing(self, target: Target) -> NotFound:
        return NotFound(f'{target.kind.id} "{target.name}" not found')

    # -- writing ----------------------------------------------------------------------------------

    async def _create(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        obj, duplicates = await self._object(request, target)
        name = (obj.get("metadata") or {}).get("name") or ""
        # What a refusal is about: kubectl prints the name that `details` holds.
        request.state.target = replace(target, name=str(name))
        stored, warnings = await self._admit_and_create(target, query, obj, duplicates)
        return _answer(target, stored, 201, warnings)

    async def _admit_and_create(
        self, target: Target, query: Mapping[str, str], obj: Object, duplicates: list[str]
    ) -> tuple[Object, list[str]]:
        kind = target.kind
        metadata = obj.get("metadata") or {}
        if metadata.get("resourceVersion"):
            raise BadRequest("resourceVersion should not be set on objects to be created")
        self._admission.admit_into_namespace(kind, obj)
        prefix = metadata.get("generateName")
        if not metadata.get("name") and prefix and isinstance(prefix, str):
            # Admission sees the final name, as on a cluster.
            name = strategy.generate_name(prefix)
            obj = {**obj, "metadata": {**metadata, "name": name}}
        name = obj["metadata"].get("name")
        key = target.key if target.name else Key(kind.id, target.namespace or "", name or "")
        if self._store.find(key) is not None:
            raise AlreadyExists(f'{kind.id} "{name}" already exists')
        obj, warnings = self._admission.admit(
            kind,
            obj,
            None,
            duplicates=duplicates,
            field_validation=_field_validation(query),
        )
        return await self._store.create(obj, dry_run=_is_dry_run(query)), warnings

    async def _update(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        obj, duplicates = await self._object(request, target)
        old = await self._store.settled(target.key)
        if old is None:
            raise self._missing(target)
        if target.kind.custom and not (obj.get("metadata") or {}).get("resourceVersion"):
            text = "Invalid value: 0x0: must be specified for an update"
            cause = Cause("FieldValueInvalid", text, "metadata.resourceVersion")
            raise Invalid(
                f'{target.kind.id} "{target.name}" is invalid: {cause.field}: {text}',
                causes=[cause],
            )
        stored, warnings = await self._admit_and_update(target, query, obj, old, duplicates)
        return _answer(target, stored, 200, warnings)

    async def _admit_and_update(
        self,
        target: Target,
        query: Mapping[str, str],
        obj: Object,
        old: Object,
        duplicates: list[str],
    ) -> tuple[Object, list[str]]:
        # What webhooks and CEL rules see is the object as it will be: with the server's metadata
        # and, where it is a subresource, the status.
        server_owned = {k: v for k, v in old["metadata"].items() if k in _SERVER_OWNED}
        obj = {**obj, "metadata": {**obj["metadata"], **server_owned}}
        if target.kind.status:
            obj = {k: v for k, v in obj.items() if k != "status"}
            if "status" in old:
                obj["status"] = old["status"]
        obj, warnings = self._admission.admit(
            target.kind,
            obj,
            old,
            duplicates=duplicates,
            field_validation=_field_validation(query),
        )
        return await self._store.update(obj, dry_run=_is_dry_run(query)), warnings

    async def _patch(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        type_ = bodies.media_type(request.headers.get("content-type", ""))
        content, duplicates = await self._patch_body(request, target, type_)
        if type_ == _APPLY:
            return await self._apply(target, query, content)

        async def once(old: Object) -> tuple[Object, list[str]]:
            changed = self._patched(target, type_, _in_version(target, old), content)
            changed = self._named(target, changed)
            return await self._admit_and_update(
                target, query, _expecting(changed, old, content), old, duplicates
            )

        stored, warnings = await self._retried(target, content, once)
        return _answer(target, stored, 200, warnings)

    async def _retried(
        self,
        target: Target,
        content: Any,
        once: Callable[[Object], Any],
    ) -> Any:
        """Read, patch, write; again when somebody else was faster, unless the patch names a
        resourceVersion.
        """
        for attempt in range(_PATCH_RETRIES):
            old = await self._store.settled(target.key)
            if old is None:
                raise self._missing(target)
            try:
                return await once(old)
            except Conflict:
                if attempt == _PATCH_RETRIES - 1 or _names_version(content):
                    raise
        raise AssertionError("unreachable")

    async def _patch_body(
        self, request: Request, target: Target, type_: str
    ) -> tuple[Any, list[str]]:
        accepted = [_JSON_PATCH, _MERGE, _APPLY]
        if not target.kind.custom:
            accepted.append(_STRATEGIC)
        if type_ not in accepted:
            raise UnsupportedMediaType(
                "the body of the request was in an unknown format - accepted media types include: "
                + ", ".join(accepted)
            )
        content, duplicates = bodies.decode(await _body(request), type_)
        if type_ != _JSON_PATCH and not isinstance(content, dict):
            raise BadRequest("the patch must be an object")
        return content, duplicates

    def _patched(self, target: Target, type_: str, old: Object, content: Any) -> Object:
        if type_ == _JSON_PATCH:
            changed = patch.json_patch(old, content)
        elif type_ == _STRATEGIC:
            changed = strategic_merge.merge(old, content, kind=target.kind.kind)
        else:
            changed = patch.merge_patch(old, content)
        if not isinstance(changed, dict) or not isinstance(changed.get("metadata"), dict):
            raise Invalid("the patch leaves no object")
        return changed

    async def _apply(self, target: Target, query: Mapping[str, str], content: Object) -> Response:
        manager = query.get("fieldManager", "")
        if not manager:
            raise Invalid(
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required '
                "for apply patch"
            )
        applied = self._named(target, content)
        title = f'{target.kind.id} "{target.name}"'
        for attempt in range(_PATCH_RETRIES):
            old = await self._store.settled(target.key)
            result = apply.apply(
                None if old is None else _in_version(target, old),
                applied,
                manager=manager,
                force=_flag(query, "force"),
                now=timestamp(),
                title=title,
            )
            try:
                if old is None:
                    stored, warnings = await self._admit_and_create(target, query, result, [])
                else:
                    stored, warnings = await self._admit_and_update(
                        target, query, _expecting(result, old, content), old, []
                    )
                return _answer(target, stored, 201 if old is None else 200, warnings)
            except (Conflict, AlreadyExists):
                if attempt == _PATCH_RETRIES - 1 or _names_version(content):
                    raise
        raise AssertionError("unreachable")

    async def _delete(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        options = await _delete_options(request, query)
        obj = await self._store.settled(target.key)
        if obj is None:
            raise self._missing(target)
        self._admission.admit_deletion(target.kind, obj)
        last = await self._store.delete(target.key, **options)
        if options["dry_run"] or self._store.find(target.key) is not None:
            return Answer(_in_version(target, last))
        return Answer(success(target, uid_of(last)))

    async def _delete_collection(
        self, request: Request, target: Target, query: Mapping[str, str]
    ) -> Response:
        if target.kind.namespaced and target.namespace is None:
            raise MethodNotAllowed("deletecollection needs a namespace")
        options = await _delete_options(request, query)
        matches = self._selector(target, query)
        victims = [
            obj
            for obj in self._store.list(target.kind.id, namespace=target.namespace)
            if matches is None or matches(obj)
        ]
        for obj in victims:
            self._admission.admit_deletion(target.kind, obj)
            try:
                await self._store.delete(scheme.key_of(obj), **{**options, "uid": uid_of(obj)})
            except (NotFound, Conflict):
                continue  # already gone, or another object of that name by now
        return Answer(
            {
                "kind": f"{target.kind.kind}List",
                "apiVersion": target.api_version,
                "metadata": {"resourceVersion": str(self._store.resource_version)},
                "items": [_in_version(target, obj) for obj in victims],
            }
        )

    # -- subresources -----------------------------------------------------------------------------

    async def _subresource(
        self, request: Request, target: Target, query: Mapping[str, str]
    ) -> Response:
        if target.subresource == "status" and target.kind.status:
            return await self._status(request, target, query)
        if target.subresource == "scale" and target.kind is scheme.DEPLOYMENT:
            return await self._scale(request, target, query)
        if target.subresource == "log" and target.kind is scheme.POD:
            return await self._log(request, target, query)
        raise NotFound(UNKNOWN_PATH)

    async def _status(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        dry_run = _is_dry_run(query)

        async def write(changed: Object) -> Object:
            if target.kind.custom:
                check_schema(changed, self._store.find(target.key))
            return await self._store.update_status(changed, dry_run=dry_run)

        if request.method == "GET":
            return self._get(request, target, query)
        if request.method == "PUT":
            obj, _ = await self._object(request, target)
            old = await self._store.settled(target.key)
            if old is None:
                raise self._missing(target)
            merged = _with_status_of(_in_version(target, old), obj)
            metadata = {**merged["metadata"]}
            metadata["resourceVersion"] = (obj.get("metadata") or {}).get("resourceVersion")
            stored = await write({**merged, "metadata": metadata})
            return _answer(target, stored, 200, [])
        if request.method != "PATCH":
            raise MethodNotAllowed("a status can be read, replaced and patched")
        type_ = bodies.media_type(request.headers.get("content-type", ""))
        content, _ = await self._patch_body(request, target, type_)

        async def once(old: Object) -> Object:
            shown = _in_version(target, old)
            changed = self._patched(target, _MERGE if type_ == _APPLY else type_, shown, content)
            return await write(_expecting(_with_status_of(shown, changed), old, content))

        stored = await self._retried(target, content, once)
        return _answer(target, stored, 200, [])

    async def _scale(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        if request.method == "GET":
            obj = self._store.find(target.key)
            if obj is None:
                raise self._missing(target)
            return Answer(_scale_of(obj))
        if request.method not in ("PUT", "PATCH"):
            raise MethodNotAllowed("a scale can be read, replaced and patched")
        type_ = bodies.media_type(request.headers.get("content-type", ""))
        if request.method == "PUT":
            content, _ = bodies.decode(await _body(request), type_)
        else:
            content, _ = await self._patch_body(request, target, type_)

        async def once(old: Object) -> Object:
            scale = _scale_of(old)
            if request.method == "PUT":
                scale = content
            elif type_ == _JSON_PATCH:
                scale = patch.json_patch(scale, content)
            else:
                scale = patch.merge_patch(scale, content)
            replicas = ((scale or {}).get("spec") or {}).get("replicas", 0)
            if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
                text = f"Invalid value: {replicas}: must be greater than or equal to 0"
                cause = Cause("FieldValueInvalid", text, "spec.replicas")
                raise strategy.invalid(target.kind, target.name, [cause])
            changed = {**old, "spec": {**(old.get("spec") or {}), "replicas": replicas}}
            stored, _ = await self._admit_and_update(
                target, query, _expecting(changed, old, content), old, []
            )
            return stored

        return Answer(_scale_of(await self._retried(target, content, once)))

    async def _log(self, request: Request, target: Target, query: Mapping[str, str]) -> Response:
        if request.method != "GET":
            raise MethodNotAllowed("logs can only be read")
        pod = self._store.find(target.key)
        if pod is None:
            raise self._missing(target)
        if self._logs is None:
            raise NotFound(f'there are no logs of pod "{target.name}"')
        container = container_of(pod, query.get("container", ""))
        since = None
        if query.get("sinceSeconds"):
            since = time.time() - _integer("sinceSeconds", query["sinceSeconds"])
        elif query.get("sinceTime"):
            since = parse_timestamp(query["sinceTime"]).timestamp()
        options = LogOptions(
            container,
            follow=_flag(query, "follow"),
            previous=_flag(query, "previous"),
            tail_lines=_optional(query, "tailLines"),
            limit_bytes=_optional(query, "limitBytes"),
            since=since,
            timestamps=_flag(query, "timestamps"),
        )
        self._logs.check(pod, options)
        chunks = aiter(self._logs.read(pod, options))
        # The first chunk is read before the answer begins, so that an error is a Status.
        first = b"" if options.follow else await anext(chunks, b"")
        return StreamingResponse(
            self._ended_with_the_server(first, chunks), media_type="text/plain"
        )

    async def _ended_with_the_server(
        self, first: bytes, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        stopped = asyncio.Event()
        with self._streams.register(stopped.set):
            if first:
                yield first
            stop = asyncio.ensure_future(stopped.wait())
            chunk: asyncio.Future[bytes] | None = None
            try:
                while not stopped.is_set():
                    chunk = asyncio.ensure_future(_next_chunk(chunks))
                    await asyncio.wait((chunk, stop), return_when=asyncio.FIRST_COMPLETED)
                    if chunk.done():
                        if not (data := chunk.result()):
                            return
                        yield data
            finally:
                for future in (chunk, stop):
                    if future is not None:
                        future.cancel()

    # -- bodies -----------------------------------------------------------------------------------

    async def _object(self, request: Request, target: Target) -> tuple[Object, list[str]]:
        type_ = bodies.media_type(request.headers.get("content-type", ""))
        obj, duplicates = bodies.decode(await _body(request), type_)
        if not isinstance(obj, dict):
            raise BadRequest("the body is not an object")
        return self._named(target, obj), duplicates

    def _named(self, target: Target, obj: Object) -> Object:
        """Return the object with kind, name and namespace of the path, if it does not contradict.

        Raises:
            BadRequest: It does.
        """
        kind = target.kind
        metadata = obj.get("metadata")
        if metadata is None:
            metadata = {}
        if not isinstance(metadata, dict):
            raise BadRequest("metadata is not an object")
        given = (obj.get("apiVersion") or target.api_version, obj.get("kind") or kind.kind)
        if given[1] != kind.kind or given[0] != target.api_version:
            raise BadRequest(
                f'{kind.kind} in version "{target.version}" cannot be handled as a {kind.kind}: '
                f"the body holds {given[0]}, Kind={given[1]}"
            )
        if target.name and metadata.get("name", target.name) != target.name:
            raise BadRequest(
                f"the name of the object ({metadata['name']}) does not match the name on the URL "
                f"({target.name})"
            )
        metadata = dict(metadata)
        if target.name:
            metadata["name"] = target.name
        if target.namespace is not None:
            if (metadata.get("namespace") or target.namespace) != target.namespace:
                raise BadRequest(
                    "the namespace of the provided object does not match the namespace sent on the "
                    "request"
                )
            metadata["namespace"] = target.namespace
        elif kind.namespaced:
            raise BadRequest("an empty namespace may not be set during creation")
        return {**obj, "apiVersion": given[0], "kind": given[1], "metadata": metadata}


def _expecting(changed: Object, old: Object, content: Any) -> Object:
    """Return the object with the resourceVersion that its write shall find."""
    # What is written may be built on `old`: the version that the caller named is in the content.
    version = (
        content["metadata"]["resourceVersion"]
        if _names_version(content)
        else old["metadata"]["resourceVersion"]
    )
    return {**changed, "metadata": {**changed["metadata"], "resourceVersion": version}}


def _names_version(content: Any) -> bool:
    metadata = content.get("metadata") if isinstance(content, dict) else None
    return isinstance(metadata, dict) and bool(metadata.get("resourceVersion"))


def _with_status_of(old: Object, new: Object) -> Object:
    result = {k: v for k, v in old.items() if k != "status"}
    if new.get("status") is not None:
        result["status"] = new["status"]
    return result


def _scale_of(deployment: Object) -> Object:
    metadata = deployment["metadata"]
    spec, status = deployment.get("spec") or {}, deployment.get("status") or {}
    labels = (spec.get("selector") or {}).get("matchLabels") or {}
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: metadata[k] for k in kept if k in metadata},
        "spec": {"replicas": spec.get("replicas", 1)},
        "status": {
            "replicas": status.get("replicas", 0),
            "selector": ",".join(f"{k}={v}" for k, v in sorted(labels.items())),
        },
    }


def _in_version(target: Target, obj: Object) -> Object:
    """Return the object as this request's version speaks of it."""
    if obj["apiVersion"] == target.api_version:
        return obj
    return {**obj, "apiVersion": target.api_version}


def _answer(target: Target, obj: Object, code: int, warnings: list[str]) -> Response:
    response = Answer(_in_version(target, obj), status_code=code)
    for warning in warnings:
        escaped = warning.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        text = escaped.encode("ascii", "replace").decode("ascii")
        response.headers.append("warning", f'299 - "{text}"')
    return response


def _wants_table(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return "as=Table" in accept and "v=v1" in accept


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in _TRUE


def _integer(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise BadRequest(f'{name}: "{text[:40]}" is not a number')
    return int(text)


def _optional(query: Mapping[str, str], name: str) -> int | None:
    return _integer(name, query[name]) if query.get(name) else None


def _is_dry_run(query: Mapping[str, str]) -> bool:
    value = query.get("dryRun", "")
    if value not in ("", "All"):
        raise Invalid(f'dryRun: Unsupported value: "{value}": supported values: "All"')
    return value == "All"


def _field_validation(query: Mapping[str, str]) -> str:
    value = query.get("fieldValidation") or "Warn"
    if value not in ("Strict", "Warn", "Ignore"):
        raise Invalid(
            f'fieldValidation: Unsupported value: "{value}": supported values: "Ignore", "Strict", '
            f'"Warn"'
        )
    return value


async def _next_chunk(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the next chunk, b"" at the end."""
    async for chunk in chunks:
        if chunk:
            return chunk
    return b""


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise BadRequest("the request ended before its body") from error


async def _delete_options(request: Request, query: Mapping[str, str]) -> dict[str, Any]:
    body = await _body(request)
    options: dict[str, Any] = {}
    if body.strip():
        type_ = bodies.media_type(request.headers.get("content-type", ""))
        options, _ = bodies.decode(body, type_)
        if not isinstance(options, dict):
            raise BadRequest("the body of a DELETE must be DeleteOptions")
    propagation = options.get("propagationPolicy") or query.get("propagationPolicy")
    if not propagation:
        orphan = options.get("orphanDependents", query.get("orphanDependents"))
        propagation = "Orphan" if orphan in (True, "true") else "Background"
    grace = options.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
    preconditions = options.get("preconditions") or {}
    if not isinstance(preconditions, dict):
        raise BadRequest("preconditions is not an object")
    version = preconditions.get("resourceVersion")
    dry_run = options.get("dryRun") or ([query["dryRun"]] if query.get("dryRun") else [])
    if dry_run not in ([], ["All"]):
        raise Invalid(f'dryRun: Unsupported value: "{dry_run}": supported values: "All"')
    try:
        seconds = None if grace in (None, "") else float(grace)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"gracePeriodSeconds: {grace!r} is not a number") from error
    if seconds is not None and (seconds < 0 or not math.isfinite(seconds)):
        raise Invalid("gracePeriodSeconds: must be greater than or equal to 0")
    return {
        "uid": preconditions.get("uid"),
        "resource_version": _integer("resourceVersion", str(version)) if version else None,
        "propagation": propagation,
        "grace": seconds,
        "dry_run": bool(dry_run),
    }
