"""The project's manifests: which files, what is wrong with them, and the objects ready to be sent.

Without `resources`, every YAML file of the folder that holds an object of a known kind is used.
Each object gets its namespace and an annotation that names its file, from which relative
storageUris start.
"""

from __future__ import annotations

import copy
import fnmatch
import os.path
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kserve_local.api import names, scheme
from kserve_local.api.manifest import Document
from kserve_local.api.meta import Object
from kserve_local.api.review import FileReport, Finding, review
from kserve_local.errors import Invalid, NotFound, UsageError
from kserve_local.project.manifest_files import STDIN, Unreadable, read_all
from kserve_local.settings import CONFIG_FILE, Settings


@dataclass(frozen=True, slots=True)
class ProjectFiles:
    """What the project's files hold.

    Args:
        objects: In the order to apply them.
        reports: The findings of `kserve-local validate` on the same files.
    """

    objects: tuple[Object, ...]
    reports: tuple[FileReport, ...]

    def sources(self, project: Path) -> list[str]:
        """Return the files that were read, relative to the project."""
        return [os.path.relpath(Path(r.path).resolve(), project) for r in self.reports]

    def findings(self) -> list[tuple[str, Finding]]:
        """Return file and finding of what does not keep the project from being applied.

        Errors are among them: a cluster takes a model that no runtime fits and says so in status.
        """
        return [(_shown(r), f) for r in self.reports for f in r.findings if not f.refuses]

    def warnings(self) -> list[str]:
        """Return the lines of `findings`, as `validate` prints them."""
        return [finding.line_in(path) for path, finding in self.findings()]

    def errors(self) -> list[str]:
        """Return the lines of what a cluster would refuse."""
        return [f.line_in(_shown(r)) for r in self.reports for f in r.findings if f.refuses]


def _shown(report: FileReport) -> str:
    return os.path.relpath(report.path)


def summary(reports: Sequence[FileReport], objects: int, warnings: int = 0) -> str:
    """Return what was found in numbers: `3 objects, 0 errors, 1 warning`, and notes if any.

    Args:
        objects: How many objects were looked at.
        warnings: Further ones.
    """
    counts: tuple[tuple[int, str], ...] = (
        (objects, "object"),
        (sum(report.count("error") for report in reports), "error"),
        (sum(report.count("warning") for report in reports) + warnings, "warning"),
    )
    notes = sum(report.count("note") for report in reports)
    if notes:
        counts = (*counts, (notes, "note"))
    return ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts)


def load_project(settings: Settings, stands_in: Callable[[str], bool]) -> ProjectFiles:
    """Read the project's files. Blocking.

    Args:
        stands_in: Whether an image runs without a container engine (`controllers.standins.known`).

    Raises:
        UsageError: A named file does not exist, or a pattern matches nothing.
        Invalid: Nothing of a known kind is there, or two files hold the same object.
    """
    documents = read_documents(settings)
    objects: list[Object] = []
    seen: dict[object, str] = {}
    for path, found in documents.items():
        for document in found:
            obj = _object(document, path, settings)
            if obj is None:
                continue
            if obj["metadata"].get("name"):
                key = scheme.key_of(obj)
                if key in seen:
                    raise Invalid(f"{key} is in both {seen[key]} and {path}")
                seen[key] = path
            objects.append(obj)
    if not documents:
        raise Invalid(
            f"no Kubernetes object of a known kind in {settings.project}",
            hint="put an InferenceService into a .yaml file there, or name files with -f",
        )
    reports = review(
        documents,
        namespace=settings.namespace,
        look_at=look_at(settings),
        mirrors=settings.mirrors,
        stands_in=stands_in,
    )
    return ProjectFiles(tuple(sorted(objects, key=_order)), tuple(reports))


def base_folder(path: str, project: Path) -> Path:
    """Return where relative storageUris of a file start: at its folder.

    What comes from standard input is nowhere; it starts at the project's folder, as what kubectl
    sends does (`controllers.init_containers.base_folder`).
    """
    return project.resolve() if path == STDIN else Path(path).resolve().parent


def look_at(settings: Settings, *, asked: bool = False) -> Callable[[str, str], str]:
    """Return what tells of a local model that something is wrong with, for the review of a file.

    That is: it is not there, or another scikit-learn than the runtime's saved it.

    Args:
        asked: Somebody else asks whether it is there.
    """
    from kserve_local.modelfiles import versions
    from kserve_local.storage.local import local_path, mirrored, missing_model

    own = settings.runtimes.get(_SKLEARN_RUNTIME)
    runtime = versions.runtime_version(own.requirements if own is not None else None)

    def look(path: str, uri: str) -> str:
        base = base_folder(path, settings.project)
        missing = "" if asked else missing_model(uri, base, settings.mirrors)
        place = mirrored(uri, settings.mirrors) or local_path(uri, base)
        return missing or (versions.warning(place, runtime) if place is not None else "")

    return look


def read_documents(settings: Settings) -> dict[str, list[Document]]:
    """Return path -> documents of what `resources` (or the folder) holds and `ignore` leaves.

    Raises:
        UsageError: A named file does not exist, or a pattern matches nothing.
    """
    try:
        found = read_all(_paths(settings), lambda path: _ignored(str(path), settings))
    except Unreadable as error:
        place = os.path.relpath(error.path, settings.project)
        error.hint = f'to leave it out, in {CONFIG_FILE}:  ignore: ["{place}"]'
        raise
    return {path: those for path, those in found.items() if not _ignored(path, settings)}


def _paths(settings: Settings) -> Sequence[str]:
    paths: list[str] = []
    for root in settings.resources or (settings.project,):
        text = str(root)
        if any(c in text for c in "*?[") and not root.exists():
            pattern = os.path.relpath(text, settings.project)
            matches = sorted(str(p) for p in settings.project.glob(pattern))
            if not matches:
                raise UsageError(f'no file matches "{pattern}"')
            paths.extend(matches)
        else:
            paths.append(text)
    return paths


def _ignored(path: str, settings: Settings) -> bool:
    if Path(path).name == CONFIG_FILE and path not in map(str, settings.resources):
        return True
    relative = os.path.relpath(path, settings.project)
    # `prod/**` is about what is in a folder, so it need not be looked into.
    return any(
        fnmatch.fnmatch(written, pattern)
        for pattern in settings.ignore
        for written in (relative, f"{relative}/")
    )


def _object(document: Document, path: str, settings: Settings) -> Object | None:
    obj = document.object
    if document.error is not None or not isinstance(obj, dict):
        return None
    try:
        kind = scheme.by_kind(str(obj.get("apiVersion")), str(obj.get("kind")))
    except NotFound:
        return None
    return mark(obj, kind, path, settings)


def mark(obj: Object, kind: scheme.ResourceType, path: str, settings: Settings) -> Object:
    """Return a copy with the namespace filled in and the annotation that names its file."""
    out = copy.deepcopy(obj)
    metadata = out.get("metadata")
    if not isinstance(metadata, dict):
        metadata = out["metadata"] = {}
    if kind.namespaced:
        metadata.setdefault("namespace", settings.namespace)
    if path != STDIN:
        annotations = metadata.get("annotations") or {}
        if isinstance(annotations, dict):
            relative = os.path.relpath(Path(path).resolve(), settings.project)
            metadata["annotations"] = {**annotations, names.MANIFEST: relative}
    return out


_SKLEARN_RUNTIME = "kserve-sklearnserver"
_FIRST = ("Namespace", "ConfigMap", "Secret", "ServiceAccount", "PersistentVolumeClaim")


def _order(obj: Object) -> int:
    """Return when to apply: what others refer to first, services last."""
    kind = str(obj["kind"])
    if kind in _FIRST:
        return _FIRST.index(kind)
    return len(_FIRST) + (0 if "Runtime" in kind or "Container" in kind else 1)


def missing_namespaces(objects: Sequence[Object]) -> list[str]:
    """Return the namespaces that the objects use, none of them is and no cluster starts with."""
    made = {o["metadata"].get("name") for o in objects if o["kind"] == "Namespace"}
    used = {o["metadata"].get("namespace") for o in objects}
    return sorted(str(n) for n in used - made if n and n not in ("default", "kserve"))


_SERVERS = {
    "sklearn": "sklearnserver",
    "xgboost": "xgbserver",
    "lightgbm": "lgbserver",
    "onnx": "onnxserver",
    "pytorch": "torchserver",
}


def runtimes_needed(objects: Sequence[Object]) -> tuple[str, ...]:
    """Return our servers that the project will want a zygote for, as far as formats tell."""
    found: dict[str, None] = {}
    for obj in objects:
        predictor = (obj.get("spec") or {}).get("predictor")
        if obj["kind"] != "InferenceService" or not isinstance(predictor, dict):
            continue
        model = predictor.get("model")
        form = (model.get("modelFormat") or {}).get("name") if isinstance(model, dict) else None
        for name, server in _SERVERS.items():
            if form == name or name in predictor:
                found[server] = None
    return tuple(found)
