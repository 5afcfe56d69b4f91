"""The built-in objects are those of a fresh KServe v0.20 installation, plus our own runtimes."""

from __future__ import annotations

from typing import Any

from kserve_local.api import builtin, config, schema, scheme, validation
from kserve_local.api.meta import name_of, namespace_of

KSERVE = {
    "kserve-sklearnserver",
    "kserve-xgbserver",
    "kserve-lgbserver",
    "kserve-predictiveserver",
    "kserve-pmmlserver",
    "kserve-paddleserver",
    "kserve-autogluonserver",
    "kserve-mlserver",
    "kserve-tensorflow-serving",
    "kserve-torchserve",
    "kserve-tritonserver",
    "kserve-huggingfaceserver",
    "kserve-huggingfaceserver-multinode",
    "kserve-vllmserver",
}
OURS = {"kserve-local-onnxserver", "kserve-local-torchserver"}


def test_the_runtimes_are_kserves_fourteen_and_ours() -> None:
    """OpenVINO is not installed by default."""
    runtimes = builtin.cluster_serving_runtimes()
    assert {name_of(r) for r in runtimes} == KSERVE | OURS
    assert {name_of(r) for r in runtimes if builtin.is_local_only(r)} == OURS


def test_our_own_are_never_chosen_by_themselves_and_say_that_a_cluster_lacks_them() -> None:
    """No autoSelect, no priority, both protocols."""
    for runtime in builtin.cluster_serving_runtimes():
        if name_of(runtime) not in OURS:
            continue
        spec = runtime["spec"]
        assert (
            "only in kserve-local"
            in runtime["metadata"]["annotations"]["kserve-local.dev/local-only"]
        )
        assert spec["protocolVersions"] == ["v1", "v2"]
        for entry in spec["supportedModelFormats"]:
            assert entry["autoSelect"] is False
            assert "priority" not in entry
        assert spec["containers"][0]["args"] == [
            "--model_name={{.Name}}",
            "--model_dir=/mnt/models",
            "--http_port=8080",
        ]


def test_runtimes_are_as_section_3_6_says() -> None:
    """One cpu and 2Gi, no ports, no privileges, metrics annotations."""
    for runtime in builtin.cluster_serving_runtimes():
        spec = runtime["spec"]
        (container,) = spec["containers"]
        assert container["name"] == "kserve-container"
        assert "ports" not in container
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert set(spec["annotations"]) == {
            "prometheus.kserve.io/port",
            "prometheus.kserve.io/path",
        }
        if "multinode" not in name_of(runtime):
            one = {"cpu": "1", "memory": "2Gi"}
            assert container["resources"] == {"requests": one, "limits": one}


def test_all_pass_their_own_schema_and_webhooks() -> None:
    """Created one after the other, as `up` does, each namespace before what lives in it."""
    cfg = config.parse(None)
    created: list[Any] = []
    namespaces: set[str] = set()

    def lookup(resource: str, namespace: str | None) -> list[Any]:
        return [
            obj
            for obj in created
            if scheme.of(obj).id == resource and namespace in (None, namespace_of(obj))
        ]

    for obj in builtin.builtin_objects():
        assert schema.unknown_fields(obj) == [], name_of(obj)
        assert [f for f in schema.check(obj) if f.kind != "unknown"] == [], name_of(obj)
        assert validation.validate(obj, old=None, config=cfg, lookup=lookup) == []
        assert not namespace_of(obj) or namespace_of(obj) in namespaces
        if obj["kind"] == "Namespace":
            namespaces.add(name_of(obj))
        created.append(obj)


def test_each_call_gives_fresh_objects() -> None:
    """What one caller does to them, no other sees."""
    builtin.builtin_objects()[0]["metadata"]["name"] = "changed"
    assert name_of(builtin.builtin_objects()[0]) == "default"
