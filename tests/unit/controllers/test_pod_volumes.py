"""Volumes as files: what a container sees at its mount paths."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from kserve_local import confined
from kserve_local.api.meta import Object
from kserve_local.controllers.environment import ConfigError, Sources
from kserve_local.controllers.pod_volumes import (
    Content,
    VolumePlaces,
    make_mounts,
    missing_claims,
    remove_volumes,
    rewrite_paths,
)
from kserve_local.interfaces.backend import Mount

SECRET = {"metadata": {"name": "creds"}, "data": {"key.json": base64.b64encode(b"{}").decode()}}
CONFIG = {"metadata": {"name": "conf"}, "data": {"a": "1", "b": "2"}}
SOURCES = Sources(secret={"creds": SECRET}.get, config_map={"conf": CONFIG}.get)


@pytest.fixture
def places(tmp_path: Path) -> VolumePlaces:
    (tmp_path / "project").mkdir()
    return VolumePlaces(tmp_path / "volumes", tmp_path / "project", {"models": tmp_path / "claim"})


def mounts_of(
    places: VolumePlaces, volume: dict[str, Any], *, path: str = "/data", **mount: Any
) -> tuple[Mount, ...]:
    pod: Object = {
        "metadata": {"name": "iris", "namespace": "default", "labels": {"app": "x"}},
        "spec": {"volumes": [{"name": "v", **volume}]},
    }
    container = {"volumeMounts": [{"name": "v", "mountPath": path, **mount}]}
    return make_mounts(pod, container, places, SOURCES)


def test_a_secret_is_files_only_the_user_can_read(places: VolumePlaces) -> None:
    (mount,) = mounts_of(places, {"secret": {"secretName": "creds"}})
    file = mount.source / "key.json"
    assert file.read_bytes() == b"{}"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_memory_volume_lies_in_memory_and_goes_with_the_pod(places: VolumePlaces) -> None:
    volume = {"emptyDir": {"medium": "Memory"}}
    (mount,) = mounts_of(places, volume, path="/dev/shm")
    assert mount.source.is_relative_to("/dev/shm")
    assert mount.source.parent.stat().st_mode & 0o077 == 0
    (mount.source / "kept").touch()
    (again,) = mounts_of(places, volume, path="/cache")
    assert (again.source / "kept").exists()
    remove_volumes(places.folder, lambda error: None)
    assert not mount.source.exists()
    assert mount.source.parent.is_dir()


def test_a_config_map_may_pick_items(places: VolumePlaces) -> None:
    items = [{"key": "a", "path": "deep/a.txt"}]
    (mount,) = mounts_of(places, {"configMap": {"name": "conf", "items": items}})
    assert (mount.source / "deep" / "a.txt").read_text() == "1"
    assert not (mount.source / "b").exists()


def test_a_projected_volume_holds_all_its_sources(places: VolumePlaces) -> None:
    downward = {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}
    parts = [{"secret": {"name": "creds"}}, {"configMap": {"name": "conf"}}]
    volume = {"projected": {"sources": [*parts, {"downwardAPI": downward}]}}
    (mount,) = mounts_of(places, volume)
    found = {p.name for p in mount.source.iterdir()}
    assert found == {"key.json", "a", "b", "labels"}
    assert (mount.source / "labels").read_text() == 'app="x"'


def test_a_claim_is_its_configured_folder(places: VolumePlaces, tmp_path: Path) -> None:
    volume = {"persistentVolumeClaim": {"claimName": "models"}}
    (mount,) = mounts_of(places, volume, subPath="iris/1")
    assert mount.source == tmp_path / "claim" / "iris" / "1"


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"secret": {"secretName": "nope"}}, 'secret "nope" not found'),
        ({"configMap": {"name": "nope"}}, 'configmap "nope" not found'),
        (
            {"configMap": {"name": "conf", "items": [{"key": "z", "path": "z"}]}},
            "references non-existent config key: z",
        ),
        (
            {"configMap": {"name": "conf", "items": [{"key": "a", "path": "../a"}]}},
            "must not contain '..': ../a",
        ),
        ({"hostPath": {"path": "/etc"}}, "outside the project folder"),
        ({"nfs": {"server": "x"}}, "nfs volumes cannot be mounted"),
        (
            {"persistentVolumeClaim": {"claimName": "other"}},
            'persistentvolumeclaim "other" not found',
        ),
    ],
)
def test_what_cannot_be_mounted_is_said(
    places: VolumePlaces, volume: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        mounts_of(places, volume)
    assert message in str(refused.value)


def test_optional_sources_may_be_missing(places: VolumePlaces) -> None:
    (mount,) = mounts_of(places, {"secret": {"secretName": "nope", "optional": True}})
    assert list(mount.source.iterdir()) == []


def test_a_host_path_inside_the_project_is_allowed(places: VolumePlaces) -> None:
    (mount,) = mounts_of(places, {"hostPath": {"path": "data", "type": "DirectoryOrCreate"}})
    assert mount.source == places.project / "data"


def fetched(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "cache" / name
    folder.mkdir(parents=True)
    (folder / f"{name}.bin").write_text(name)
    return folder


def with_contents(places: VolumePlaces, *contents: Content) -> VolumePlaces:
    return VolumePlaces(places.folder, places.project, places.claims, contents)


def test_one_fetched_model_is_mounted_as_it_lies(places: VolumePlaces, tmp_path: Path) -> None:
    """So process mode sees the real directory, and nothing is copied."""
    model = fetched(tmp_path, "m")
    there = with_contents(places, Content("/mnt/models", model))
    (mount,) = mounts_of(there, {"emptyDir": {}}, path="/mnt/models", readOnly=True)
    assert mount == Mount("/mnt/models", model, read_only=True)


def test_several_models_are_linked_below_their_common_parent(
    places: VolumePlaces, tmp_path: Path
) -> None:
    one, two = fetched(tmp_path, "one"), fetched(tmp_path, "two")
    there = with_contents(places, Content("/mnt/models/a", one), Content("/mnt/models/b", two))
    (mount,) = mounts_of(there, {"emptyDir": {}}, path="/mnt/models", readOnly=True)
    assert (mount.source / "a" / "one.bin").read_text() == "one"
    assert (mount.source / "b" / "two.bin").resolve() == two / "two.bin"


def test_a_writable_model_is_a_copy(places: VolumePlaces, tmp_path: Path) -> None:
    """The shared cache must stay as it is."""
    model = fetched(tmp_path, "m")
    there = with_contents(places, Content("/mnt/models", model))
    (mount,) = mounts_of(there, {"emptyDir": {}}, path="/mnt/models", readOnly=False)
    (mount.source / "m.bin").write_text("changed")
    assert (model / "m.bin").read_text() == "m"
    (again,) = mounts_of(there, {"emptyDir": {}}, path="/mnt/models", readOnly=False)
    assert (again.source / "m.bin").read_text() == "changed"


def test_removing_volumes_follows_no_links(places: VolumePlaces, tmp_path: Path) -> None:
    one, two = fetched(tmp_path, "one"), fetched(tmp_path, "two")
    there = with_contents(places, Content("/m/a", one), Content("/m/b", two))
    mounts_of(there, {"emptyDir": {}}, path="/m", readOnly=True)
    remove_volumes(places.folder, lambda error: pytest.fail(str(error)))
    remove_volumes(places.folder, lambda error: pytest.fail(str(error)))
    assert (one / "one.bin").exists()
    assert not places.folder.exists()


def test_paths_in_variables_become_real_paths(tmp_path: Path) -> None:
    mounts = (Mount("/var/secrets", tmp_path),)
    env = {"F": "/var/secrets/key.json", "G": "/var/secrets2", "H": "x"}
    assert rewrite_paths(env, mounts) == {
        "F": f"{tmp_path}/key.json",
        "G": "/var/secrets2",
        "H": "x",
    }


def test_claims_without_folder_are_named() -> None:
    volumes = [{"persistentVolumeClaim": {"claimName": n}} for n in ("b", "a", "models")]
    pod = {"spec": {"volumes": [*volumes, {"emptyDir": {}}]}}
    assert missing_claims(pod, {"models": Path("/x")}) == ("a", "b")


OUTSIDE = "failed to prepare subPath for volumeMount"


def in_docker(
    places: VolumePlaces, volume: dict[str, Any], *mounts: dict[str, Any], linked: bool = False
) -> tuple[Mount, ...]:
    """Return the mounts of a container of a Pod with one volume `v`."""
    pod: Object = {
        "metadata": {"name": "iris", "namespace": "default"},
        "spec": {"volumes": [{"name": "v", **volume}]},
    }
    entries = [{"name": "v", **mount} for mount in mounts]
    container = {"name": "main", "volumeMounts": entries}
    return make_mounts(pod, container, places, SOURCES, linked=linked)


def secret_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "secret"
    folder.mkdir(mode=0o700)
    (folder / "key").write_text("s3cr3t")
    (folder / "key").chmod(0o600)
    return folder


@pytest.mark.parametrize("linked", [False, True])
def test_a_link_in_the_project_leads_no_sub_path_out_of_it(
    places: VolumePlaces, tmp_path: Path, *, linked: bool
) -> None:
    """Both ways of running; the words are the kubelet's (CVE-2021-25741)."""
    secret = secret_folder(tmp_path)
    (places.project / "hp").mkdir()
    (places.project / "hp" / "esc").symlink_to(secret)
    volume = {"hostPath": {"path": "hp"}}
    for sub_path in ("esc", "esc/new"):
        with pytest.raises(ConfigError, match=OUTSIDE):
            in_docker(places, volume, {"mountPath": "/h", "subPath": sub_path}, linked=linked)
    assert sorted(p.name for p in secret.iterdir()) == ["key"]


def test_a_container_cannot_turn_its_sub_path_into_a_link_out(
    places: VolumePlaces, tmp_path: Path
) -> None:
    """The first run replaces the folder that the second would mount."""
    secret = secret_folder(tmp_path)
    wanted = ({"mountPath": "/e"}, {"mountPath": "/h", "subPath": "sub"})
    whole, sub = in_docker(places, {"emptyDir": {}}, *wanted)
    assert sub.source == whole.source.resolve() / "sub"
    assert sub.within == whole.source.resolve()
    sub.source.rmdir()
    sub.source.symlink_to(secret)
    with pytest.raises(ConfigError, match=f'{OUTSIDE} "v" of container "main"'):
        in_docker(places, {"emptyDir": {}}, *wanted)
    assert not confined.is_real(whole.source.resolve(), sub.source)
    assert secret.stat().st_mode & 0o777 == 0o700
    assert (secret / "key").stat().st_mode & 0o777 == 0o600


def test_a_link_that_stays_inside_is_followed_before_the_mount(places: VolumePlaces) -> None:
    (whole,) = in_docker(places, {"emptyDir": {}}, {"mountPath": "/e"})
    (whole.source / "a").mkdir()
    (whole.source / "b").symlink_to("a")
    (sub,) = in_docker(places, {"emptyDir": {}}, {"mountPath": "/h", "subPath": "b/new"})
    assert sub.source == whole.source.resolve() / "a" / "new"
    assert sub.source.is_dir()


def test_modes_are_never_set_through_links(places: VolumePlaces, tmp_path: Path) -> None:
    """Neither at a volume's top nor below, whatever its containers put there."""
    secret = secret_folder(tmp_path)
    (whole,) = in_docker(places, {"emptyDir": {}}, {"mountPath": "/e"})
    assert whole.source.stat().st_mode & 0o777 == 0o777
    (whole.source / "top").symlink_to(secret)
    (whole.source / "file").symlink_to(secret / "key")
    (whole.source / "own").write_text("mine")
    (whole.source / "own").chmod(0o600)
    in_docker(places, {"emptyDir": {}}, {"mountPath": "/e"})
    confined.open_up(whole.source)
    with pytest.raises(OSError, match="top"):
        confined.open_up(whole.source / "top")
    assert secret.stat().st_mode & 0o777 == 0o700
    assert (secret / "key").stat().st_mode & 0o777 == 0o600


def test_a_container_keeps_its_own_modes_in_an_empty_dir(places: VolumePlaces) -> None:
    """A restart is not a new volume."""
    (whole,) = in_docker(places, {"emptyDir": {}}, {"mountPath": "/e"})
    (whole.source / "own").write_text("mine")
    (whole.source / "own").chmod(0o600)
    in_docker(places, {"emptyDir": {}}, {"mountPath": "/e"})
    assert (whole.source / "own").stat().st_mode & 0o777 == 0o600


PICKED = [{"key": "a", "path": "run.sh", "mode": 0o755}, {"key": "b", "path": "deep/b"}]


@pytest.mark.parametrize(
    ("volume", "modes"),
    [
        ({"configMap": {"name": "conf"}}, {"a": 0o644, "b": 0o644}),
        (
            {"configMap": {"name": "conf", "defaultMode": 0o440, "items": PICKED}},
            {"run.sh": 0o755, "deep/b": 0o440},
        ),
        ({"secret": {"secretName": "creds"}}, {"key.json": 0o644}),
        ({"secret": {"secretName": "creds", "defaultMode": 0o400}}, {"key.json": 0o400}),
        (
            {
                "projected": {
                    "defaultMode": 0o600,
                    "sources": [{"configMap": {"name": "conf", "items": PICKED[:1]}}],
                }
            },
            {"run.sh": 0o755},
        ),
        (
            {"downwardAPI": {"items": [{"path": "n", "mode": 0o444}]}},
            {"n": 0o444},
        ),
    ],
)
def test_what_we_write_is_read_only_and_has_the_modes_it_says(
    places: VolumePlaces, volume: dict[str, Any], modes: dict[str, int]
) -> None:
    """As on a node, whatever `readOnly` of the mount says; twice, as after a restart."""
    for _ in range(2):
        (mount,) = in_docker(places, volume, {"mountPath": "/c", "readOnly": False})
        assert mount.read_only
        found = {name: (mount.source / name).stat().st_mode & 0o777 for name in modes}
        assert found == modes
        assert mount.source.stat().st_mode & 0o777 == 0o755
    if "deep/b" in modes:
        assert (mount.source / "deep").stat().st_mode & 0o777 == 0o755


def test_members_of_the_fs_group_can_read_what_the_owner_can(
    places: VolumePlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group itself only where this user may give files away."""

    def refused(fd: int, user: int, group: int) -> None:
        raise PermissionError

    pod: Object = {
        "metadata": {"name": "iris", "namespace": "default"},
        "spec": {
            "securityContext": {"fsGroup": os.getegid()},
            "volumes": [{"name": "v", "secret": {"secretName": "creds", "defaultMode": 0o400}}],
        },
    }
    container = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    (mount,) = make_mounts(pod, container, places, SOURCES, linked=False)
    assert (mount.source / "key.json").stat().st_mode & 0o777 == 0o440
    monkeypatch.setattr(os, "fchown", refused)
    make_mounts(pod, container, places, SOURCES, linked=False)
    assert (mount.source / "key.json").stat().st_mode & 0o777 == 0o444


def test_a_process_gets_the_owners_part_of_a_secrets_mode(places: VolumePlaces) -> None:
    (mount,) = mounts_of(places, {"secret": {"secretName": "creds", "defaultMode": 0o444}})
    assert (mount.source / "key.json").stat().st_mode & 0o777 == 0o400
    items = {"configMap": {"name": "conf", "items": PICKED}}
    (mount,) = mounts_of(places, items, path="/c")
    assert os.access(mount.source / "run.sh", os.X_OK)
