"""Models in images: the Pods that KServe makes of them, and how the node agent reads those."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api import builtin
from kserve_local.api.config import InferenceServiceConfig, parse
from kserve_local.api.meta import Object
from kserve_local.controllers import oci_models, storage_volumes
from kserve_local.controllers.environment import ConfigError, Sources
from kserve_local.controllers.modelcars import image_volumes, modelcars
from kserve_local.controllers.pod_containers import all_containers, custom_init_containers
from kserve_local.controllers.pod_mutators import mutate
from kserve_local.controllers.pod_plan import Seen, plan_pod
from kserve_local.controllers.pod_status import Terminated
from kserve_local.controllers.pod_volumes import Content, VolumePlaces, make_mounts
from kserve_local.errors import Forbidden, Invalid
from kserve_local.interfaces.backend import ContainerStatus, Mount, ReplicaStatus

CONFIG = parse(builtin.config_map())
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
URI = "oci://quay.io/team/iris:v1"
IMAGE = "quay.io/team/iris:v1"


def configured(**settings: Any) -> InferenceServiceConfig:
    return replace(CONFIG, storage_initializer=replace(CONFIG.storage_initializer, **settings))


def mutated(
    uri: str, config: InferenceServiceConfig = CONFIG, *names: str, **spec: Any
) -> dict[str, Any]:
    """Return the spec of a Pod with these containers as the webhook admits it."""
    pod: Object = {
        "kind": "Pod",
        "metadata": {
            "name": "iris",
            "namespace": "default",
            "labels": {"serving.kserve.io/inferenceservice": "iris"},
            "annotations": {SOURCE: uri},
        },
        "spec": {"containers": [{"name": n} for n in names or ("kserve-container",)], **spec},
    }
    result: dict[str, Any] = mutate(pod, config=config, lookup=lambda *_: [])["spec"]
    return result


@pytest.mark.parametrize(
    ("uri", "configured_mode", "expected"),
    [
        (URI, "modelcar", ("modelcar", URI)),
        (URI, "native", ("native", URI)),
        (URI, "fetch", ("fetch", URI)),
        (URI, "", ("", "")),
        (f"oci+native://{IMAGE}", "modelcar", ("native", URI)),
        (f"oci+fetch://{IMAGE}", "native", ("fetch", URI)),
        (f"oci+modelcar://{IMAGE}", "native", ("modelcar", URI)),
        (f"oci+native://{IMAGE}", "", ("native", URI)),
        ("s3://bucket/model", "modelcar", ("", "")),
        ("oci", "modelcar", ("", "")),
        ("ocix://a/b", "modelcar", ("", "")),
    ],
)
def test_the_scheme_s_mode_goes_before_the_configured_one(
    uri: str, configured_mode: str, expected: tuple[str, str]
) -> None:
    assert oci_models.mode_of(uri, configured(oci_mode=configured_mode)) == expected


RESOURCES = {
    "limits": {"cpu": "10m", "memory": "15Mi"},
    "requests": {"cpu": "10m", "memory": "15Mi"},
}


def test_a_modelcar() -> None:
    spec = mutated(URI)
    server, sidecar = spec["containers"]
    volume = "kserve-provision-location"
    assert server == {
        "name": "kserve-container",
        "env": [{"name": "MODEL_INIT_MODE", "value": "async"}],
        "volumeMounts": [{"name": volume, "mountPath": "/mnt"}],
        "securityContext": {"runAsUser": 1010},
    }
    assert sidecar == {
        "name": "modelcar",
        "image": IMAGE,
        "args": ["sh", "-c", "ln -sf /proc/$$$$/root/models /mnt/models && sleep infinity"],
        "resources": RESOURCES,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": volume, "mountPath": "/mnt"}],
        "securityContext": {"runAsUser": 1010},
    }
    (check,) = spec["initContainers"]
    script = check.pop("args")
    assert check == {
        "name": "modelcar-init",
        "image": IMAGE,
        "resources": RESOURCES,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    assert script[:2] == ["sh", "-c"]
    # `$(` alone would be a variable of Kubernetes.
    assert "$$(ls -A /models)" in script[2]
    assert spec["volumes"] == [{"name": volume, "emptyDir": {}}]
    assert spec["shareProcessNamespace"] is True


def test_a_modelcar_as_the_configuration_has_it() -> None:
    config = configured(modelcar_uid=None, modelcar_cpu="1", modelcar_memory="1Gi")
    server, sidecar = mutated(URI, config)["containers"]
    assert "securityContext" not in server
    assert "securityContext" not in sidecar
    assert sidecar["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}


def test_a_collocated_transformer_sees_the_model_too() -> None:
    spec = mutated(URI, CONFIG, "kserve-container", "transformer-container", "other")
    server, transformer, other, sidecar = spec["containers"]
    assert server["volumeMounts"] == transformer["volumeMounts"]
    assert transformer["env"] == server["env"]
    assert other == {"name": "other"}
    assert sidecar["name"] == "modelcar"
    assert len(spec["initContainers"]) == 1


def test_a_worker_takes_the_server_s_place() -> None:
    worker, sidecar = mutated(URI, CONFIG, "worker-container")["containers"]
    assert worker["volumeMounts"] == sidecar["volumeMounts"]
    with pytest.raises(Forbidden, match="Invalid configuration: cannot find container"):
        mutated(URI, CONFIG, "other")


def test_a_native_image_volume() -> None:
    spec = mutated(f"oci+native://{IMAGE}", CONFIG, "kserve-container", "transformer-container")
    assert spec["volumes"] == [
        {"name": "mnt-models", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}}
    ]
    mount = {
        "name": "mnt-models",
        "mountPath": "/mnt/models",
        "subPath": "models",
        "readOnly": True,
    }
    assert [c["volumeMounts"] for c in spec["containers"]] == [[mount], [mount]]
    assert set(spec) == {"containers", "volumes"}


def test_a_fetched_image() -> None:
    spec = mutated(f"oci+fetch://{IMAGE}", configured(oci_insecure_registry=True))
    (initializer,) = spec["initContainers"]
    assert initializer["name"] == "storage-initializer"
    assert initializer["args"] == [URI, "/mnt/models"]
    assert initializer["env"] == [{"name": "KSERVE_OCI_INSECURE_REGISTRY", "value": "true"}]
    mount = {"name": "mnt-models", "mountPath": "/mnt/models"}
    assert initializer["volumeMounts"] == [mount]
    assert spec["containers"] == [{"name": "kserve-container", "volumeMounts": [mount]}]
    assert spec["volumes"] == [{"name": "mnt-models", "emptyDir": {}}]


def test_a_fetched_image_with_pull_secrets() -> None:
    """The first one alone, as upstream."""
    secrets = [{"name": "one"}, {"name": "two"}]
    spec = mutated(f"oci+fetch://{IMAGE}", imagePullSecrets=secrets)
    (initializer,) = spec["initContainers"]
    name = "kserve-oci-fetch-docker-config"
    place = "/mnt/oci-fetch-auth"
    assert initializer["env"] == [
        {"name": "KSERVE_OCI_DOCKER_CONFIG", "value": f"{place}/config.json"}
    ]
    assert {"name": name, "mountPath": place, "readOnly": True} in initializer["volumeMounts"]
    assert spec["volumes"][0] == {
        "name": name,
        "secret": {
            "secretName": "one",
            "defaultMode": 0o400,
            "items": [{"key": ".dockerconfigjson", "path": "config.json"}],
        },
    }


def test_without_a_mode_the_storage_initializer_does_it() -> None:
    spec = mutated(URI, configured(oci_mode=""))
    assert spec["initContainers"][0]["args"] == [URI, "/mnt/models"]
    assert [c["name"] for c in spec["containers"]] == ["kserve-container"]


def added(config: InferenceServiceConfig, *entries: tuple[str, str]) -> dict[str, Any]:
    """Return the PodSpec that `storageUris` of (URI, mount path) make."""
    spec: dict[str, Any] = {"containers": [{"name": "kserve-container"}]}
    uris = [{"uri": uri, "mountPath": path} for uri, path in entries]
    storage_volumes.add(spec, uris, config=config)
    return spec


def test_several_images_have_numbers() -> None:
    spec = added(CONFIG, (URI, "/mnt/models"), ("oci://r/b:2", "/opt/b c/model"))
    names = [c["name"] for c in spec["containers"]]
    assert names == ["kserve-container", "modelcar", "modelcar-1"]
    assert [c["name"] for c in spec["initContainers"]] == ["modelcar-init", "modelcar-init-1"]
    assert [v["name"] for v in spec["volumes"]] == [
        "kserve-provision-location",
        "kserve-provision-location-1",
    ]
    assert spec["containers"][2]["args"][2] == (
        "mkdir -p '/opt/b c' && ln -sf /proc/$$$$/root/models '/opt/b c/model' && sleep infinity"
    )
    mounts = [m["mountPath"] for m in spec["containers"][0]["volumeMounts"]]
    assert mounts == ["/mnt", "/opt/b c"]


def test_images_beside_other_sources() -> None:
    spec = added(CONFIG, ("s3://b/a", "/mnt/base"), (f"oci+native://{IMAGE}", "/mnt/lora"))
    assert [c["name"] for c in spec["initContainers"]] == ["storage-initializer"]
    assert spec["initContainers"][0]["args"] == ["s3://b/a", "/mnt/base"]
    assert [v["name"] for v in spec["volumes"]] == ["mnt-lora", "mnt-base"]


def test_beside_a_fetched_image_nothing_else_is_fetched() -> None:
    """As upstream, which says that this is unsupported."""
    spec = added(CONFIG, ("s3://b/a", "/mnt/a"), (f"oci+fetch://{IMAGE}", "/mnt/b"))
    (initializer,) = spec["initContainers"]
    assert initializer["args"] == [URI, "/mnt/b"]


@pytest.mark.parametrize(
    ("mode", "paths", "words"),
    [
        (
            "modelcar",
            ("/mnt/a", "/mnt/b"),
            'OCI mount paths "/mnt/a" and "/mnt/b" share parent directory "/mnt", which would '
            "cause volume mount shadowing; use mount paths with distinct parent directories",
        ),
        ("fetch", ("/a", "/b"), 'OCI mount paths "/a" and "/b" share parent directory "/"'),
        (
            "native",
            ("/mnt/a", "/mnt/a"),
            'OCI mount path "/mnt/a" is specified more than once; each native ImageVolume must '
            "have a unique mount path",
        ),
        ("native", ("/mnt/a", "/mnt/b"), ""),
        ("modelcar", ("/mnt/a", "/opt/a"), ""),
    ],
)
def test_mount_paths_in_each_other_s_way(mode: str, paths: tuple[str, str], words: str) -> None:
    config = configured(oci_mode=mode)
    entries = [(f"oci://r/{number}:1", path) for number, path in enumerate(paths)]
    if not words:
        added(config, *entries)
        return
    with pytest.raises(Invalid) as caught:
        added(config, *entries)
    assert caught.value.message.startswith(words)


def test_a_path_that_another_volume_has_taken() -> None:
    spec: dict[str, Any] = {
        "containers": [
            {
                "name": "kserve-container",
                "volumeMounts": [{"name": "own", "mountPath": "/mnt/models"}],
            }
        ]
    }
    with pytest.raises(Invalid, match='mountPath "/mnt/models" already used by volume "own"'):
        oci_models.inject(spec, URI, "/mnt/models", "native", CONFIG)


# -- the node agent's side ------------------------------------------------------------------------


def pod_with(*entries: tuple[str, str]) -> Object:
    return {"metadata": {"name": "p", "uid": "u"}, "spec": added(CONFIG, *entries)}


def test_modelcars_are_read_from_the_pod() -> None:
    pod = pod_with((URI, "/mnt/models"), ("oci://r/b:2", "/opt/b c/model"))
    first, second = modelcars(pod)
    assert (first.init, first.sidecar) == ("modelcar-init", "modelcar")
    assert (first.uri, first.target) == (URI, "/mnt/models")
    assert (second.uri, second.target) == ("oci://r/b:2", "/opt/b c/model")
    assert [c["name"] for c in all_containers(pod)] == ["kserve-container"]
    assert custom_init_containers(pod) == []


@pytest.mark.parametrize(
    "change",
    [
        {"args": ["sh", "-c", "sleep infinity"]},
        {"args": ["serve"]},
        {"args": ["sh", "-c", "ln -sf '"]},
        {"image": "other"},
        {"name": "sidecar"},
    ],
    ids=["no link", "no shell", "broken", "another image", "another name"],
)
def test_a_container_of_the_user_s_own_is_no_modelcar(change: dict[str, Any]) -> None:
    pod = pod_with((URI, "/mnt/models"))
    pod["spec"]["containers"][1].update(change)
    assert modelcars(pod) == ()
    assert len(all_containers(pod)) == 2
    assert len(custom_init_containers(pod)) == 1


def test_the_sidecar_runs_from_when_the_model_is_there() -> None:
    pod = pod_with((URI, "/mnt/models"))
    plan = plan_pod(pod, Seen(), 10.0)
    assert plan.initialize == "modelcar-init"
    states = {c["name"]: c["state"] for c in plan.status["containerStatuses"]}
    assert states["modelcar"] == {"waiting": {"reason": "PodInitializing"}}
    done = {"modelcar-init": Terminated(0, "Completed", started_at=11.0, finished_at=12.0)}
    plan = plan_pod(pod, Seen(init=done), 13.0)
    assert plan.create
    server, sidecar = plan.status["containerStatuses"]
    assert not server["ready"]
    assert sidecar["ready"]
    assert sidecar["state"] == {"running": {"startedAt": "1970-01-01T00:00:12Z"}}
    status = ContainerStatus("kserve-container", "running", started_at=14.0, ready=True)
    seen = Seen(init=done, replica=ReplicaStatus("u", "default", "p", "", (status,)))
    plan = plan_pod(pod, seen, 15.0)
    assert [c["ready"] for c in plan.status["containerStatuses"]] == [True, True]
    assert plan.status["phase"] == "Running"
    assert not plan.restart


def test_a_pod_with_a_modelcar_never_succeeds() -> None:
    """Its sidecar runs on, as on a cluster."""
    pod = pod_with((URI, "/mnt/models"))
    pod["spec"]["restartPolicy"] = "Never"
    done = {"modelcar-init": Terminated(0, "Completed", finished_at=12.0)}
    ended = ContainerStatus("kserve-container", "terminated", exit_code=0, finished_at=14.0)
    seen = Seen(init=done, replica=ReplicaStatus("u", "default", "p", "", (ended,)))
    assert plan_pod(pod, seen, 15.0).status["phase"] == "Running"


def mounts_of(
    pod: Object, tmp_path: Path, *contents: Content, linked: bool, **images: Path
) -> list[Mount]:
    places = VolumePlaces(tmp_path / "volumes", tmp_path, {}, contents, images)
    sources = Sources(secret=lambda _: None, config_map=lambda _: None)
    (server,) = all_containers(pod)
    return list(make_mounts(pod, server, places, sources, linked=linked))


def test_a_process_sees_the_shared_folder(tmp_path: Path) -> None:
    """And `/mnt` stays the machine's: a project may lie there."""
    model = tmp_path / "cache"
    pod = pod_with((URI, "/mnt/models"))
    content = Content("/mnt/models", model, linked=True)
    assert mounts_of(pod, tmp_path, content, linked=True) == [Mount("/mnt/models", model)]


def test_a_process_sees_several_below_one_folder(tmp_path: Path) -> None:
    model = tmp_path / "cache"
    pod = pod_with((URI, "/mnt/models/base"))
    content = Content("/mnt/models/base", model, linked=True)
    inner, outer = mounts_of(pod, tmp_path, content, linked=True)
    assert inner == Mount("/mnt/models/base", model)
    assert outer.path == "/mnt/models"
    assert (outer.source / "base").readlink() == model


def test_a_container_gets_one_mount_in_another(tmp_path: Path) -> None:
    model = tmp_path / "cache"
    pod = pod_with((URI, "/mnt/models"))
    content = Content("/mnt/models", model, linked=True)
    inner, outer = mounts_of(pod, tmp_path, content, linked=False)
    assert inner == Mount("/mnt/models", model)
    assert (outer.path, outer.read_only) == ("/mnt", False)
    assert list(outer.source.iterdir()) == []


@pytest.mark.parametrize("linked", [True, False])
def test_each_model_is_in_its_own_volume(tmp_path: Path, linked: bool) -> None:
    """Also where one volume is mounted below another."""
    one, two = tmp_path / "one", tmp_path / "two"
    pod = pod_with((URI, "/mnt/models"), (URI, "/mnt/more/models"))
    contents = [
        Content("/mnt/models", one, linked=True),
        Content("/mnt/more/models", two, linked=True),
    ]
    found = mounts_of(pod, tmp_path, *contents, linked=linked)
    assert [m for m in found if m.source in (one, two)] == [
        Mount("/mnt/more/models", two),
        Mount("/mnt/models", one),
    ]
    assert len({m.path for m in found}) == len(found)


def test_an_image_volume_is_the_shared_folder(tmp_path: Path) -> None:
    pod = pod_with((f"oci+native://{IMAGE}", "/mnt/models"))
    (volume,) = image_volumes(pod)
    assert (volume.name, volume.image, volume.pull) == ("mnt-models", IMAGE, "IfNotPresent")
    images = {"mnt-models": tmp_path / "cache"}
    assert mounts_of(pod, tmp_path, linked=True, **images) == [
        Mount("/mnt/models", tmp_path / "cache")
    ]
    mount = pod["spec"]["containers"][0]["volumeMounts"][0]
    mount["subPath"] = "models/v1"
    assert mounts_of(pod, tmp_path, linked=True, **images)[0].source == tmp_path / "cache/v1"
    mount["subPath"] = "etc"
    with pytest.raises(ConfigError, match="only subPath models of an image can be mounted"):
        mounts_of(pod, tmp_path, linked=True, **images)
