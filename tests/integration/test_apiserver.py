"""The API over real TLS, through our own client and through bare requests."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api import scheme
from kserve_local.api.meta import Key, Object, WatchEvent
from kserve_local.apiserver.app import create_app
from kserve_local.apiserver.serve import serving
from kserve_local.apiserver.watch import OpenStreams
from kserve_local.client import kubeconfig
from kserve_local.client.client import Client
from kserve_local.errors import (
    AlreadyExists,
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KServeLocalError,
    MethodNotAllowed,
    NotFound,
    ServiceUnavailable,
    Unauthorized,
    UnsupportedMediaType,
)
from kserve_local.store.store import open_store
from kserve_local.supervisor import certificates
from tests.integration.apiserver_world import TOKEN, World, running

ISVC = scheme.INFERENCE_SERVICE


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


def isvc(name: str, predictor: dict[str, Any] | None = None, **metadata: Any) -> Object:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://bucket/model"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "spec": {"predictor": {"model": model, **(predictor or {})}},
    }


def config_map(name: str, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    }


# -- verbs --------------------------------------------------------------------------------------


async def test_an_object_lives_through_all_verbs(world: World) -> None:
    client = world.client
    made = await client.create(isvc("iris"))
    assert made["metadata"]["annotations"] == {"modelFormat": "sklearn"}, "the webhook ran"
    assert await client.get(ISVC, "iris") == made
    assert [o["metadata"]["name"] for o in await client.list(ISVC)] == ["iris"]
    made["spec"]["predictor"]["minReplicas"] = 0
    replaced = await client.replace(made)
    assert replaced["metadata"]["generation"] == 2
    patched = await client.patch(ISVC, "iris", {"spec": {"predictor": {"minReplicas": None}}})
    assert "minReplicas" not in patched["spec"]["predictor"]
    status = await client.delete(ISVC, "iris")
    assert (status["kind"], status["status"]) == ("Status", "Success")
    assert await client.find(ISVC, "iris") is None


async def test_failures_are_kubernetes_words(world: World) -> None:
    client = world.client
    with pytest.raises(NotFound, match=r'^inferenceservices\.serving\.kserve\.io "x" not found$'):
        await client.get(ISVC, "x")
    made = await client.create(isvc("x"))
    with pytest.raises(AlreadyExists, match='"x" already exists'):
        await client.create(isvc("x"))
    await client.patch(ISVC, "x", {"spec": {"predictor": {"minReplicas": 2}}})
    with pytest.raises(Conflict, match="the object has been modified"):
        await client.replace(made)
    del made["metadata"]["resourceVersion"]
    with pytest.raises(Invalid, match=r"metadata.resourceVersion: Invalid value: 0x0: must be"):
        await client.replace(made)
    with pytest.raises(NotFound, match="the server could not find the requested resource"):
        await client.call("GET", "/apis/serving.kserve.io/v1beta1/namespaces/default/nothings")
    with pytest.raises(MethodNotAllowed):
        await client.call("POST", client.path(ISVC, "x"), body={})


async def test_admission_refuses_as_a_cluster_does(world: World) -> None:
    with pytest.raises(Forbidden) as forbidden:
        await world.client.create(isvc("x", {"minReplicas": 3, "maxReplicas": 1}))
    assert forbidden.value.message == (
        'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
        "'MinReplicas' cannot be greater than MaxReplicas"
    )
    with pytest.raises(Invalid) as invalid:
        await world.client.create(isvc("x", {"minReplicas": "three"}))
    assert [c.field for c in invalid.value.causes] == ["spec.predictor.minReplicas"]
    with pytest.raises(NotFound, match='namespaces "nowhere" not found'):
        await world.client.create(isvc("x", namespace="nowhere"))
    assert await world.client.list(ISVC) == []


async def test_unknown_fields_are_reported_as_asked(world: World) -> None:
    odd = isvc("x", {"oddity": 1})
    with pytest.raises(BadRequest) as strict:
        await world.client.create(odd, field_validation="Strict")
    text = 'strict decoding error: unknown field "spec.predictor.oddity"'
    assert strict.value.message == text
    made = await world.client.create(odd)
    assert world.warnings == ['unknown field "spec.predictor.oddity"']
    assert "oddity" not in made["spec"]["predictor"]
    world.warnings.clear()
    await world.client.apply(odd, field_validation="Ignore")
    assert world.warnings == []
    body = b'{"metadata": {"name": "y"}, "data": {"a": "1", "a": "2"}}'
    status, headers, _ = await world.raw(
        f"POST /api/v1/namespaces/default/configmaps HTTP/1.1\nHost: localhost\n"
        f"Authorization: Bearer {TOKEN}",
        body,
    )
    assert status == 201
    assert headers["warning"] == '299 - "duplicate field \\"data.a\\""'


async def test_apply_creates_changes_and_removes(world: World) -> None:
    client = world.client
    wish = config_map("a", x="1", y="2")
    assert (await client.apply(wish))[1] == "created"
    assert (await client.apply(wish))[1] == "unchanged"
    await client.patch(scheme.CONFIG_MAP, "a", {"data": {"z": "mine"}})
    after, outcome = await client.apply(config_map("a", x="3"))
    assert outcome == "configured"
    assert after["data"] == {"x": "3", "z": "mine"}


async def test_a_status_written_meanwhile_is_no_change_of_the_object(world: World) -> None:
    """Controllers write at any time; what counts is what the user said."""

    class Beaten(Client):
        async def call(self, method: str, path: str, **rest: Any) -> Any:
            if method == "PATCH":
                await world.client.patch(
                    ISVC, "x", {"status": {"url": f"http://{next(numbers)}"}}, subresource="status"
                )
            return await super().call(method, path, **rest)

    numbers = iter(range(9))
    async with Beaten(world.access) as client:
        await world.client.apply(isvc("x"))
        before = await client.get(ISVC, "x")
        after, outcome = await client.apply(isvc("x"))
        assert outcome == "unchanged"
        assert after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]
        assert (await client.apply(isvc("x"), dry_run=True))[1] == "unchanged"
        assert (await client.apply(isvc("x", labels={"a": "b"})))[1] == "configured"
        assert (await client.apply(isvc("x", {"minReplicas": 2})))[1] == "configured"


async def test_patches_that_race_all_arrive(world: World) -> None:
    """The server reads again when somebody else was faster; no client has to."""
    await world.client.create(config_map("a"))
    await asyncio.gather(
        *(world.client.patch(scheme.CONFIG_MAP, "a", {"data": {f"k{i}": "1"}}) for i in range(5))
    )
    assert set((await world.client.get(scheme.CONFIG_MAP, "a"))["data"]) == {
        f"k{i}" for i in range(5)
    }


async def test_strategic_patches_are_for_built_in_kinds(world: World) -> None:
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "old", "args": ["x"]}]},
            },
        },
    }
    await world.client.create(deployment)
    containers = [{"name": "c", "image": "new"}]
    patch = {"spec": {"template": {"spec": {"containers": containers}}}}
    after = await world.client.patch(scheme.DEPLOYMENT, "d", patch, type_="strategic")
    container = after["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["args"]) == ("new", ["x"])
    await world.client.create(isvc("x"))
    with pytest.raises(UnsupportedMediaType, match="application/merge-patch"):
        await world.client.patch(ISVC, "x", {}, type_="strategic")


async def test_status_and_scale_are_apart(world: World) -> None:
    await world.client.create(isvc("x"))
    after = await world.client.patch(
        ISVC, "x", {"status": {"url": "http://x"}, "spec": {}}, subresource="status"
    )
    assert after["status"]["url"] == "http://x"
    kept = await world.client.patch(ISVC, "x", {"status": {"url": "http://other"}})
    assert kept["status"]["url"] == "http://x"
    with pytest.raises(NotFound):
        await world.client.patch(ISVC, "x", {"spec": {"replicas": 2}}, subresource="scale")


async def test_dry_runs_answer_and_store_nothing(world: World) -> None:
    made = await world.client.create(isvc("x"), dry_run=True)
    assert made["metadata"]["annotations"] == {"modelFormat": "sklearn"}
    assert await world.client.list(ISVC) == []
    with pytest.raises(Forbidden):
        await world.client.create(isvc("x", {"minReplicas": 3, "maxReplicas": 1}), dry_run=True)


async def test_both_versions_of_an_llm_service_are_one_object(world: World) -> None:
    llm = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": {"name": "x", "namespace": "default"},
        "spec": {"model": {"uri": "hf://org/model", "name": "m"}},
    }
    made = await world.client.create(llm)
    assert made["apiVersion"] == "serving.kserve.io/v1alpha1"
    newer = await world.client.get(scheme.LLM_INFERENCE_SERVICE, "x")
    assert newer["apiVersion"] == "serving.kserve.io/v1alpha2"
    assert newer["metadata"]["uid"] == made["metadata"]["uid"]


async def test_selectors_select(world: World) -> None:
    for name, label in (("a", "1"), ("b", "2")):
        obj = config_map(name)
        obj["metadata"]["labels"] = {"x": label}
        await world.client.create(obj)
    kind = scheme.CONFIG_MAP

    async def names(**how: str) -> list[str]:
        found = await world.client.list(kind, namespace="default", **how)
        return [o["metadata"]["name"] for o in found]

    assert await names(labels="x in (2,3)") == ["b"]
    assert await names(fields="metadata.name=a") == ["a"]
    with pytest.raises(BadRequest, match="field label not supported"):
        await names(fields="spec.x=a")


async def test_the_configuration_counts_at_once(world: World) -> None:
    mode = {"data": {"deploy": json.dumps({"defaultDeploymentMode": "Standard"})}}
    await world.client.patch(scheme.CONFIG_MAP, "inferenceservice-config", mode, "kserve")
    made = await world.client.create(isvc("x"))
    annotations = made["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"


async def test_permanent_namespaces_stay(world: World) -> None:
    with pytest.raises(Forbidden, match="this namespace may not be deleted"):
        await world.client.delete(scheme.NAMESPACE, "default")


async def test_a_deleted_namespace_takes_no_content(world: World) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    await world.client.create(namespace)
    held = config_map("a")
    held["metadata"] |= {"namespace": "n", "finalizers": ["example.com/x"]}
    await world.client.create(held)
    await world.client.delete(scheme.NAMESPACE, "n")
    with pytest.raises(Forbidden, match="because it is being terminated"):
        await world.client.create(isvc("x", namespace="n"))


# -- watches, logs ------------------------------------------------------------------------------


async def taken(events: AsyncIterator[WatchEvent], count: int) -> list[tuple[str, str]]:
    found = []
    async for event in events:
        found.append((event.type, event.object["metadata"]["name"]))
        if len(found) == count:
            return found
    return found


async def test_a_watch_follows_and_resumes(world: World) -> None:
    client, kind = world.client, scheme.CONFIG_MAP
    await client.create(config_map("a"))
    since = world.store.resource_version
    async with aclosing(client.watch(kind, namespace="default")) as events:
        assert await taken(events, 1) == [("ADDED", "a")]
        await client.create(config_map("b"))
        await client.delete(kind, "a")
        assert await taken(events, 2) == [("ADDED", "b"), ("DELETED", "a")]
    async with aclosing(client.watch(kind, namespace="default", since=since)) as events:
        assert await taken(events, 2) == [("ADDED", "b"), ("DELETED", "a")]
    with pytest.raises(Gone):
        async with aclosing(client.watch(kind, since=since + 1000)) as events:
            await taken(events, 1)


async def test_a_watch_with_a_selector_tells_what_stops_matching(world: World) -> None:
    client, kind = world.client, scheme.CONFIG_MAP
    await client.create(config_map("a"))
    since = world.store.resource_version
    async with aclosing(client.watch(kind, labels="x=1", since=since, seconds=30)) as events:
        for label in ("1", "1", "2", "1"):
            patch = {"metadata": {"labels": {"x": label}}}
            await client.patch(kind, "a", patch)
        await client.patch(kind, "a", {"data": {"more": "1"}})
        await client.delete(kind, "a")
        seen = await taken(events, 5)
    assert [type_ for type_, _ in seen] == ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"]


async def test_a_watch_ends_at_its_timeout(world: World) -> None:
    events = world.client.watch(scheme.POD, seconds=1)
    assert [event async for event in events] == []


async def test_logs_are_read_followed_and_cut(world: World) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]},
    }
    await world.client.create(pod)
    log = world.folder / "logs" / "p" / "c.log"
    log.parent.mkdir(parents=True)

    async def read(**how: Any) -> bytes:
        return b"".join([chunk async for chunk in world.client.logs("p", **how)])

    with pytest.raises(BadRequest, match="is waiting to start: ContainerCreating"):
        await read(container="c")
    log.write_bytes(b"".join(b"line %d\n" % i for i in range(20_000)))
    log.with_name("c.log.1").write_bytes(b"older\n")
    log.with_name("c.previous.log").write_bytes(b"crashed\n")
    assert (await read(container="c")).startswith(b"older\nline 0\n")
    assert await read(container="c", tail=2) == b"line 19998\nline 19999\n"
    assert (await read(container="c", tail=15_000)).startswith(b"line 5000\n")
    assert await read(container="c", tail=0) == b""
    assert await read(container="c", previous=True) == b"crashed\n"
    with pytest.raises(BadRequest, match=r"must be specified for pod p, choose one of: \[c d\]"):
        await read()
    with pytest.raises(BadRequest, match="container x is not valid for pod p"):
        await read(container="x")
    async with aclosing(world.client.logs("p", container="c", tail=1, follow=True)) as chunks:
        assert await anext(chunks) == b"line 19999\n"
        with log.open("ab") as file:
            file.write(b"new\n")
        assert await anext(chunks) == b"new\n"
        await world.store.delete(Key("pods", "default", "p"), grace=0)
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)


async def test_open_streams_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """`down` must not wait for somebody's `kubectl get -w`."""
    async with open_store(tmp_path / "state.db") as store:
        certs = certificates.ensure(tmp_path / "certificates")
        sock = socket.create_server(("127.0.0.1", 0))
        server = f"https://127.0.0.1:{sock.getsockname()[1]}"
        streams = OpenStreams()
        app = create_app(store, token=TOKEN, streams=streams)
        client = Client(kubeconfig.Access(server, certs.ca.read_text(), TOKEN))
        async with serving(
            app, sock, certificate=certs.certificate, key=certs.key, streams=streams
        ):
            await store.create(config_map("a"))
            events = client.watch(scheme.CONFIG_MAP)
            assert (await anext(events)).type == "ADDED"
            waiting = asyncio.ensure_future(anext(events, None))
        assert await waiting is None
        await client.close()
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            await client.list(scheme.POD)


# -- who may call -------------------------------------------------------------------------------


async def test_nobody_gets_in_without_the_token(world: World) -> None:
    for token in ("", "wrong", TOKEN + "x"):
        async with Client(replace(world.access, token=token)) as client:
            with pytest.raises(Unauthorized, match="Unauthorized"):
                await client.list(ISVC)
            with pytest.raises(Unauthorized):
                await client.call("GET", "/apis/kserve-local.dev/v1/who")
            assert (await client.call("GET", "/version"))["major"] == "1"


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8089", "", 200),
        ("127.0.0.1", "", 200),
        ("[::1]:8089", "", 200),
        ("evil.example.com", "", 403),
        ("localhost.evil.example.com:8089", "", 403),
        ("localhost", "https://evil.example.com", 403),
        ("localhost", "null", 403),
    ],
)
async def test_web_pages_are_kept_out(world: World, host: str, origin: str, status: int) -> None:
    """A page that rebinds its name to 127.0.0.1 shows itself by Host or Origin."""
    extra = f"\nOrigin: {origin}" if origin else ""
    found, _, body = await world.raw(
        f"GET /api/v1/pods HTTP/1.1\nHost: {host}\nAuthorization: Bearer {TOKEN}{extra}"
    )
    assert found == status
    if status == 403:
        assert json.loads(body)["reason"] == "Forbidden"


async def test_bodies_are_bounded(world: World) -> None:
    with pytest.raises(ApiError, match="Request entity too large: limit is 3145728") as caught:
        await world.client.create(config_map("big", data="x" * (3 * 1024 * 1024)))
    assert caught.value.code == 413
    head = (
        "POST /api/v1/namespaces/default/configmaps HTTP/1.1\nHost: localhost\n"
        f"Authorization: Bearer {TOKEN}\nTransfer-Encoding: chunked"
    )
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    port = int(world.access.server.rpartition(":")[2])
    context = ssl.create_default_context(cadata=world.access.ca)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + chunk * 50)
    assert b" 413 " in await reader.readline()
    writer.close()


async def test_certificates_satisfy_a_strict_verifier(world: World) -> None:
    port = int(world.access.server.rpartition(":")[2])
    context = ssl.create_default_context(cadata=world.access.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    for name in ("localhost", "127.0.0.1", "::1"):
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=name
        )
        writer.close()
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="other")
    with pytest.raises(ServiceUnavailable):
        async with Client(replace(world.access, ca=_other_ca(world.folder))) as client:
            await client.list(ISVC)


def _other_ca(folder: Path) -> str:
    return certificates.ensure(folder / "others").ca.read_text()


# -- the rest -----------------------------------------------------------------------------------


async def test_discovery_in_every_form(world: World) -> None:
    groups = await world.client.call("GET", "/apis")
    assert "serving.kserve.io" in {g["name"] for g in groups["groups"]}
    resources = await world.client.call("GET", "/apis/serving.kserve.io/v1beta1")
    by_name = {r["name"]: r for r in resources["resources"]}
    assert by_name["inferenceservices"]["shortNames"] == ["isvc"]
    assert "inferenceservices/status" in by_name
    head = f"GET /apis HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\nAccept: "
    wanted = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
    status, headers, body = await world.raw(head + wanted)
    assert status == 200
    assert headers["content-type"] == wanted.lower().partition(",")[0]
    assert json.loads(body)["kind"] == "APIGroupDiscoveryList"
    etag = headers["etag"].upper()
    status, _, body = await world.raw(f"{head}{wanted}\nIf-None-Match: {etag}")
    assert (status, body) == (304, b"")


async def test_openapi_says_that_the_server_validates(world: World) -> None:
    index = await world.client.call("GET", "/openapi/v3")
    path = index["paths"]["apis/serving.kserve.io/v1beta1"]["serverRelativeURL"]
    document = await world.client.call("GET", path)
    gvk = {"group": "serving.kserve.io", "version": "v1beta1", "kind": "InferenceService"}
    patches = [
        item["patch"]
        for item in document["paths"].values()
        if item.get("patch", {}).get("x-kubernetes-group-version-kind") == gvk
    ]
    assert {"fieldValidation", "dryRun"} <= {p["name"] for p in patches[0]["parameters"]}
    schemas = document["components"]["schemas"]
    assert any(gvk in s.get("x-kubernetes-group-version-kind", ()) for s in schemas.values())
    with pytest.raises(NotFound):
        await world.client.call("GET", "/openapi/v2")


async def test_tables_are_given_when_asked_for(world: World) -> None:
    await world.client.create(isvc("iris"))
    status, _, body = await world.raw(
        "GET /apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices HTTP/1.1\n"
        f"Host: localhost\nAuthorization: Bearer {TOKEN}\n"
        "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    )
    shown = json.loads(body)
    assert (status, shown["kind"]) == (200, "Table")
    assert shown["rows"][0]["cells"][0] == "iris"
    assert shown["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


async def test_extra_routes_share_token_and_errors(world: World) -> None:
    assert await world.client.call("GET", "/apis/kserve-local.dev/v1/who") == {"hello": "you"}
    with pytest.raises(KServeLocalError, match="not now") as caught:
        await world.client.call("POST", "/apis/kserve-local.dev/v1/fail")
    assert isinstance(caught.value, ServiceUnavailable)


async def test_certificates_and_kubeconfig_are_kept_and_private(tmp_path: Path) -> None:
    first = certificates.ensure(tmp_path / "c")
    before = [p.read_bytes() for p in (first.ca, first.certificate, first.key)]
    again = certificates.ensure(tmp_path / "c")
    assert [p.read_bytes() for p in (again.ca, again.certificate, again.key)] == before
    assert first.key.stat().st_mode & 0o777 == 0o600
    first.certificate.write_text("damaged")
    certificates.ensure(tmp_path / "c")
    assert first.ca.read_bytes() == before[0]
    assert first.certificate.read_bytes() not in (b"damaged", before[1])
    access = kubeconfig.Access("https://127.0.0.1:1", "CA\n", "t", "ns")
    kubeconfig.write(tmp_path / "kubeconfig", access)
    assert kubeconfig.read(tmp_path / "kubeconfig") == access
    assert (tmp_path / "kubeconfig").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ServiceUnavailable):
        kubeconfig.read(tmp_path / "missing")
    (tmp_path / "odd").write_text("contexts: 3\n")
    with pytest.raises(Invalid, match="not a kubeconfig"):
        kubeconfig.read(tmp_path / "odd")
