"""A Pod's volumes as real files and directories on this machine.

Reads the Pod's `volumes` and `volumeMounts`, Secrets, ConfigMaps, the configured claims and what
the storage initializer fetched; writes below `run/volumes/<uid>/`; gives the mounts of a
container. Copies kubelet's file layout for Secrets, ConfigMaps and projected volumes (`items`,
`optional`, `subPath`, which no link may lead out of its volume). Fetched models are linked, not
copied: the shared cache is read-only.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from kserve_local import confined
from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of, namespace_of
from kserve_local.controllers.environment import (
    ConfigError,
    Sources,
    config_map_data,
    secret_keys,
    secret_value,
)
from kserve_local.controllers.oci_models import FOLDER
from kserve_local.interfaces.backend import Mount

_SHARED_MEMORY = Path("/dev/shm")
_WRITTEN = frozenset({"configMap", "secret", "downwardAPI", "projected"})
"""Volumes whose files are ours: always mounted read-only, as the kubelet does."""


@dataclass(frozen=True, slots=True)
class Content:
    """What the storage initializer put at one target path of the Pod.

    Args:
        linked: The Pod itself links it there, from an image: read-only in any volume.
    """

    target: str
    path: Path
    linked: bool = False


@dataclass(frozen=True, slots=True)
class VolumePlaces:
    """Where volumes come from.

    Args:
        folder: `run/volumes/<uid>`.
        project: Project folder; `hostPath` volumes must lie in it.
        claims: PersistentVolumeClaim name -> folder.
        contents: What the storage initializer fetched, by target path.
        images: What volumes of images hold, by name: the image's `/models`.
    """

    folder: Path
    project: Path
    claims: Mapping[str, Path]
    contents: tuple[Content, ...] = ()
    images: Mapping[str, Path] = field(default_factory=dict)


def missing_claims(pod: Object, claims: Mapping[str, Path]) -> tuple[str, ...]:
    """Return the claims the Pod names that no folder is configured for."""
    wanted = (
        str((v.get("persistentVolumeClaim") or {}).get("claimName") or "")
        for v in (pod.get("spec") or {}).get("volumes") or ()
    )
    return tuple(sorted({name for name in wanted if name and name not in claims}))


def _inside(base: Path, relative: str) -> Path:
    """Return `base/relative`, refusing what leaves `base`."""
    parts = PurePosixPath(relative.lstrip("/")).parts
    if ".." in parts:
        raise ConfigError(f"must not contain '..': {relative}")
    return base.joinpath(*parts)


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a volume; `mode` is its item's, None for the volume's."""

    content: bytes
    mode: int | None = None


def _write(folder: Path, files: Mapping[str, _File], *, mode: int, group: int | None) -> None:
    """Write a volume's files with their modes.

    Args:
        mode: The volume's `defaultMode`.
        group: The Pod's `fsGroup`, which may read all of it.
    """
    for name, file in files.items():
        path = _inside(folder, name)
        _make_folders(folder, path.parent)
        temporary = path.with_name(path.name + ".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(file.content)
            wanted = mode if file.mode is None else file.mode
            os.fchmod(fd, _with_group(fd, wanted, group))
        temporary.rename(path)


def _make_folders(root: Path, folder: Path) -> None:
    if folder != root and not folder.is_dir():
        _make_folders(root, folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


def _with_group(fd: int, mode: int, group: int | None) -> int:
    """Give a file to the group if this user may, and return the mode that lets its members read.

    Source: kubelet's volume ownership, `0440` for volumes that are read-only.
    """
    if group is None:
        return mode
    try:
        os.fchown(fd, -1, group)
    except OSError:
        return mode | 0o444  # Only root, or a member, can: then everybody in the container may.
    return mode | 0o440


def _picked(
    found: Mapping[str, bytes], items: Sequence[Mapping[str, Any]], *, what: str, optional: bool
) -> dict[str, _File]:
    """Return the files of a Secret or ConfigMap: all keys, or the `items` at their paths."""
    if not items:
        return {key: _File(content) for key, content in found.items()}
    files = {}
    for item in items:
        key = str(item.get("key", ""))
        if key in found:
            files[str(item.get("path") or key)] = _File(found[key], _mode(item.get("mode")))
        elif not optional:
            raise ConfigError(f"references non-existent {what} key: {key}")
    return files


def _mode(given: Any) -> int | None:
    return None if given is None else int(given) & 0o777


def _secret_files(source: Mapping[str, Any], name: str, sources: Sources) -> dict[str, _File]:
    optional = bool(source.get("optional"))
    secret = sources.secret(name)
    if secret is None:
        if optional:
            return {}
        raise ConfigError(f'secret "{name}" not found')
    found = {key: secret_value(secret, key) or b"" for key in secret_keys(secret)}
    return _picked(found, source.get("items") or (), what="secret", optional=optional)


def _config_map_files(source: Mapping[str, Any], sources: Sources) -> dict[str, _File]:
    optional = bool(source.get("optional"))
    name = str(source.get("name") or "")
    config_map = sources.config_map(name)
    if config_map is None:
        if optional:
            return {}
        raise ConfigError(f'configmap "{name}" not found')
    found = config_map_data(config_map)
    return _picked(found, source.get("items") or (), what="config", optional=optional)


def _downward_files(source: Mapping[str, Any], pod: Object) -> dict[str, _File]:
    fields = {
        "metadata.name": name_of(pod),
        "metadata.namespace": namespace_of(pod),
        "metadata.labels": _lines(labels_of(pod)),
        "metadata.annotations": _lines(annotations_of(pod)),
    }
    return {
        str(item.get("path", "")): _File(
            fields.get(str((item.get("fieldRef") or {}).get("fieldPath", "")), "").encode(),
            _mode(item.get("mode")),
        )
        for item in source.get("items") or ()
    }


def _lines(values: Mapping[str, str]) -> str:
    return "\n".join(f'{k}="{v}"' for k, v in sorted(values.items()))


def _projected(source: Mapping[str, Any], pod: Object, sources: Sources) -> dict[str, _File]:
    files: dict[str, _File] = {}
    for part in source.get("sources") or ():
        if (ref := part.get("secret")) is not None:
            files |= _secret_files(ref, str(ref.get("name") or ""), sources)
        elif (ref := part.get("configMap")) is not None:
            files |= _config_map_files(ref, sources)
        elif (ref := part.get("downwardAPI")) is not None:
            files |= _downward_files(ref, pod)
    return files


def _make(
    volume: Mapping[str, Any], pod: Object, places: VolumePlaces, sources: Sources, *, linked: bool
) -> Path:
    """Make one volume and return its directory.

    Raises:
        ConfigError: A source is missing or not allowed, in kubelet's words.
    """
    name = str(volume.get("name", ""))
    folder = places.folder / name
    if (ref := volume.get("persistentVolumeClaim")) is not None:
        claim = str(ref.get("claimName") or "")
        if claim not in places.claims:
            raise ConfigError(f'persistentvolumeclaim "{claim}" not found')
        return places.claims[claim]
    if (volume.get("emptyDir") or {}).get("medium") == "Memory":
        return _in_memory(folder)
    if (ref := volume.get("hostPath")) is not None:
        project = places.project.resolve()
        path = (project / str(ref.get("path") or "")).resolve()
        if not path.is_relative_to(project):
            raise ConfigError(
                f'volume "{name}": hostPath {ref.get("path")} lies outside the project folder; '
                "only paths inside it can be mounted"
            )
        if str(ref.get("type") or "") == "DirectoryOrCreate":
            confined.real_path(project, str(path.relative_to(project)), make=True)
        return path
    if volume.get("image") is not None and name in places.images:
        return places.images[name]
    _make_folder(folder)
    if _WRITTEN & set(volume):
        _make_files(folder, volume, pod, sources, linked=linked)
    elif not {"emptyDir", "image"} & set(volume) and set(volume) - {"name"}:
        kind = next(iter(set(volume) - {"name"}))
        raise ConfigError(
            f'volume "{name}": {kind} volumes cannot be mounted on this machine; emptyDir, image, '
            "configMap, secret, projected, downwardAPI, persistentVolumeClaim and hostPath can"
        )
    return folder


def _make_files(
    folder: Path, volume: Mapping[str, Any], pod: Object, sources: Sources, *, linked: bool
) -> None:
    """Write the files of a volume that is all ours."""
    if (ref := volume.get("secret")) is not None:
        files = _secret_files(ref, str(ref.get("secretName") or ""), sources)
    elif (ref := volume.get("configMap")) is not None:
        files = _config_map_files(ref, sources)
    elif (ref := volume.get("downwardAPI")) is not None:
        files = _downward_files(ref, pod)
    else:
        ref = volume["projected"]
        files = _projected(ref, pod, sources)
    given = _mode(ref.get("defaultMode"))
    mode = 0o644 if given is None else given
    group = ((pod.get("spec") or {}).get("securityContext") or {}).get("fsGroup")
    if linked:
        # A process is this machine's user; secrets are nobody else's business.
        group = None
        if {"secret", "projected"} & set(volume):
            mode &= 0o700
            files = {
                n: replace(f, mode=None if f.mode is None else f.mode & 0o700)
                for n, f in files.items()
            }
    folder.chmod(0o755)
    _write(folder, files, mode=mode, group=None if group is None else int(group))


def _make_folder(folder: Path) -> None:
    """Make a volume's folder for users of any container, as on a node; the state folder above keeps
    others of this machine out.
    """
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        folder.mkdir()
    except FileExistsError:
        return
    folder.chmod(0o777)


def _memory_root() -> Path | None:
    """Return our folder in the machine's memory, made private; None: it has none, or not for us."""
    if not _SHARED_MEMORY.is_dir():
        return None
    root = _SHARED_MEMORY / f"kserve-local-{os.geteuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return root if private and found.st_uid == os.geteuid() else None


def _in_memory(folder: Path) -> Path:
    """Make a memory-backed emptyDir: a link at the volume's place says where in memory it lies."""
    root = _memory_root()
    if root is None:
        _make_folder(folder)
        return folder
    there = root / f"{folder.parent.name}.{folder.name}"
    _make_folder(there)
    if not folder.is_symlink():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.symlink_to(there)
    return there


def _below(path: str, parent: str) -> str | None:
    """Return `path` relative to `parent`, `""` when equal, None when it lies elsewhere."""
    here, there = PurePosixPath(path), PurePosixPath(parent)
    if not here.is_relative_to(there):
        return None
    relative = here.relative_to(there)
    return "" if relative == PurePosixPath(".") else str(relative)


def link_contents(folder: Path, mount_path: str, contents: Sequence[Content]) -> None:
    """Show fetched contents below a volume that is mounted at `mount_path`, as symbolic links.

    Two sources with one target are merged entry by entry, the later one winning, as the storage
    initializer's downloads into one directory do.
    """
    for content in contents:
        relative = _below(content.target, mount_path)
        if relative is None:
            continue
        target = _inside(folder, relative)
        target.mkdir(parents=True, exist_ok=True)
        entries = sorted(content.path.iterdir()) if content.path.is_dir() else [content.path]
        for entry in entries:
            link = target / entry.name
            if link.is_symlink() or link.is_file():
                link.unlink()
            elif link.is_dir():
                shutil.rmtree(link)
            link.symlink_to(entry)


def copy_contents(folder: Path, mount_path: str, contents: Sequence[Content]) -> None:
    """Put private, writable copies of fetched contents below a volume's folder. Blocking."""
    for content in contents:
        relative = _below(content.target, mount_path)
        if relative is None:
            continue
        target = _inside(folder, relative)
        if content.path.is_dir():
            shutil.copytree(content.path, target, dirs_exist_ok=True, copy_function=_copy)
        else:
            target.mkdir(parents=True, exist_ok=True)
            _copy(str(content.path), str(target / content.path.name))
    confined.open_up(folder)


def _copy(source: str, target: str) -> str:
    shutil.copyfile(source, target)
    return target


def make_mounts(
    pod: Object,
    container: Mapping[str, Any],
    places: VolumePlaces,
    sources: Sources,
    *,
    made: dict[str, Path] | None = None,
    linked: bool = True,
) -> tuple[Mount, ...]:
    """Make what the container mounts and return the mounts, the longest paths first.

    A volume that received exactly one fetched source at its own mount path is mounted as that
    source, so that process mode sees the real model directory. Blocking (small files only, except
    copies for writable models).

    Args:
        made: Volumes made so far by name, shared by the containers of one Pod.
        linked: Links that lead out of a volume can be followed; in a container they cannot, and
            content is copied where it would take some.

    Raises:
        ConfigError: In kubelet's words.
    """
    spec = pod.get("spec") or {}
    volumes = {str(v.get("name", "")): v for v in spec.get("volumes") or ()}
    made = {} if made is None else made
    mounts: list[Mount] = []
    for entry in container.get("volumeMounts") or ():
        name, path = str(entry.get("name", "")), str(entry.get("mountPath", ""))
        volume = volumes.get(name)
        if volume is None:
            raise ConfigError(f'volumeMount "{name}" has no volume of that name')
        read_only = bool(entry.get("readOnly")) or bool(_WRITTEN & set(volume))
        inside = [
            c
            for c in places.contents
            if _below(c.target, path) is not None and not (c.linked and _deeper(container, c, path))
        ]
        if volume.get("emptyDir") is not None and any(c.linked for c in inside):
            mounts += _with_links(
                name, path, [c for c in inside if c.linked], places, linked=linked
            )
            continue
        if volume.get("emptyDir") is not None and inside:
            source = _with_contents(
                name, path, inside, places, read_only=read_only, made=made, linked=linked
            )
        else:
            if name not in made:
                made[name] = _make(volume, pod, places, sources, linked=linked)
            source = made[name]
        sub_path = str(entry.get("subPath") or "")
        if volume.get("image") is not None:
            sub_path = _inside_models(name, sub_path)
        within = places.project.resolve() if volume.get("hostPath") is not None else None
        if sub_path:
            makes = bool({"emptyDir", "persistentVolumeClaim", "hostPath"} & set(volume))
            # What we linked there ourselves may lie in the cache.
            also = [c.path for c in inside] if linked else []
            within = source.resolve()
            try:
                source = _sub_path(source, sub_path, also, make=makes and not read_only)
            except confined.LeadsOut as error:
                raise ConfigError(
                    f'failed to prepare subPath for volumeMount "{name}" of container '
                    f'"{container.get("name")}": {error}'
                ) from error
        mounts.append(
            Mount(
                path=path.rstrip("/") or "/",
                source=source,
                read_only=read_only,
                within=None if linked else within,
            )
        )
    return tuple(sorted(mounts, key=lambda m: -len(m.path)))


def _sub_path(source: Path, sub_path: str, also: Sequence[Path], *, make: bool) -> Path:
    """Return the real path of a `subPath`.

    Args:
        also: Where it may lead beside the volume.
        make: Make the folder if it is missing, as the kubelet does.

    Raises:
        LeadsOut: A link leads elsewhere.
        ConfigError: The path itself does.
    """
    inside = _inside(source, sub_path)
    relative = inside.relative_to(source)
    there = inside.resolve()
    if any(there.is_relative_to(place.resolve()) for place in also):
        return there
    return confined.real_path(source, str(relative), make=make)


def _deeper(container: Mapping[str, Any], content: Content, path: str) -> bool:
    """Whether a linked content lies in another volume that is mounted below `path`."""
    paths = (str(entry.get("mountPath", "")) for entry in container.get("volumeMounts") or ())
    return any(_below(content.target, p) is not None and _below(p, path) for p in paths)


def _with_links(
    name: str, path: str, contents: Sequence[Content], places: VolumePlaces, *, linked: bool
) -> Iterator[Mount]:
    """Yield the mounts of a volume in which a sidecar links what images hold."""
    folder = places.folder / name
    _make_folder(folder)
    for content in contents:
        if linked:
            link = _inside(folder, _below(content.target, path) or "")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(content.path)
        yield Mount(path=content.target, source=content.path, read_only=True)
    # Nothing else is in `/mnt`, and a process may know a real path there (WSL: /mnt/c).
    if not linked or PurePosixPath(path) != PurePosixPath(names.MODEL_DIR).parent:
        yield Mount(path=path.rstrip("/") or "/", source=folder, read_only=False)


def _inside_models(volume: str, sub_path: str) -> str:
    """Return a path in an image relative to its `/models`, which is all that is brought here.

    Raises:
        ConfigError: It leads elsewhere in the image.
    """
    relative = _below(f"/{sub_path.strip('/')}", f"/{FOLDER}")
    if relative is None:
        raise ConfigError(
            f'volume "{volume}": only subPath {FOLDER} of an image can be mounted on this machine'
        )
    return relative


def _with_contents(
    name: str,
    path: str,
    inside: Sequence[Content],
    places: VolumePlaces,
    *,
    read_only: bool,
    made: dict[str, Path],
    linked: bool,
) -> Path:
    if read_only and len(inside) == 1 and _below(inside[0].target, path) == "":
        only = inside[0].path
        if linked or not _leads_out(only):
            return only
    variant = name if read_only else f"{name}.writable"
    if variant not in made:
        folder = places.folder / variant
        # Kept over restarts of the container: an emptyDir lives as long as the Pod.
        if not (folder.exists() and any(folder.iterdir())):
            _make_folder(folder)
            link = read_only and linked
            (link_contents if link else copy_contents)(folder, path, inside)
        made[variant] = folder
    return made[variant]


def _leads_out(folder: Path) -> bool:
    """Whether a folder holds a link to what lies outside of it."""
    root = folder.resolve()
    return any(
        not Path(place, name).resolve().is_relative_to(root)
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if os.path.islink(os.path.join(place, name))
    )


def rewrite_paths(env: Mapping[str, str], mounts: Sequence[Mount]) -> dict[str, str]:
    """Return the environment with values that are paths below a mount turned into real paths."""

    def one(value: str) -> str:
        for mount in mounts:
            relative = _below(value, mount.path) if value.startswith("/") else None
            if relative is not None:
                return str(mount.source / relative) if relative else str(mount.source)
        return value

    return {name: one(value) for name, value in env.items()}


def remove_volumes(folder: Path, on_error: Callable[[OSError], None]) -> None:
    """Delete a Pod's volumes. Blocking.

    Links are removed, never what they point at, but for volumes of this Pod in memory.
    """
    try:
        for entry in folder.iterdir():
            there = _memory_root()
            if there and entry.is_symlink() and entry.readlink().parent == there:
                shutil.rmtree(entry.readlink(), ignore_errors=True)
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        on_error(error)
