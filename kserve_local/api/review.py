"""Judges manifests without a server: schema, CEL, KServe's webhooks, runtime match. Pure.

Does with each document what a cluster would do with it, in a cluster's order: unknown fields are
pruned (a warning), the mutating webhook runs, then schema and CEL rules, then the validating
webhook. Every finding gets the line and column of the field it is about. `validate` prints the
result; `up` refuses to start on errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from kserve_local.api import (
    blame,
    builtin,
    defaults,
    gaps,
    names,
    revision_template,
    runtime_selection,
    schema,
    scheme,
    storage_uris,
    validation,
    validation_resources,
)
from kserve_local.api import inferenceservice as shape
from kserve_local.api.config import InferenceServiceConfig, IngressConfig
from kserve_local.api.config import parse as parse_config
from kserve_local.api.manifest import Document
from kserve_local.api.meta import Object, annotations_of, name_of, namespace_of
from kserve_local.api.metadata_rules import name_problem
from kserve_local.api.pod_autoscaler import CLUSTER_CONFIG
from kserve_local.errors import Forbidden, Invalid, NotFound

Path_ = tuple[str | int, ...]
Severity = Literal["error", "warning", "note"]
Source = Literal[
    "yaml",
    "kind",
    "schema",
    "metadata",
    "field",
    "webhook",
    "runtime",
    "revision",
    "project",
    "gap",
    "storage",
]

_LABEL = 63
"""Characters of a DNS label."""
_IN_STATUS = frozenset(("runtime", "revision", "storage"))
_OUR_GROUPS = frozenset(r.group for r in scheme.ALL if "." in r.group)
_KINDS = frozenset(r.kind for r in scheme.ALL)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Args:
        severity: A note is what works on a cluster and has no effect here; no flag makes it more.
        object: `Kind/name`, empty where there is none.
        field: Dotted path, empty where there is none.
        details: More lines, e.g. each runtime and why it does not fit.
        source: What found it; `valid` and `schema_valid` go by it. `runtime`: a cluster takes the
            object, and its controller refuses it then. `revision`: Knative refuses what the
            controller makes of it. `storage`: the source cannot be read.
    """

    line: int
    column: int
    severity: Severity
    object: str
    field: str
    message: str
    source: Source
    details: tuple[str, ...] = ()

    @property
    def refuses(self) -> bool:
        """Whether a cluster refuses the object for it, rather than saying so in its status."""
        return self.severity == "error" and self.source not in _IN_STATUS

    def line_in(self, path: str) -> str:
        """Return `file:line:column severity message`, without the details."""
        return f"{path}:{self.line}:{self.column} {self.severity} {self.message}"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A place of a model that is named in an object with nothing wrong about it.

    Args:
        document: Where `path` is.
        object: The object in its namespace.
        component: What of it has a service account and, for a predictor, `model.storage`.
        path: The field.
        uri: Its value; empty where it is the path of a `storage` block.
    """

    document: Document
    object: Object
    component: Mapping[str, Any]
    path: Path_
    uri: str


@dataclass(frozen=True, slots=True)
class FileReport:
    """All findings of one file, in the order of its lines.

    Args:
        objects: How many Kubernetes objects it holds.
        sources: The models' sources, for who wants to ask whether they can be read.
    """

    path: str
    findings: tuple[Finding, ...]
    objects: int
    sources: tuple[ModelSource, ...] = ()

    def plus(self, found: Iterable[Finding]) -> FileReport:
        """Return the report with further findings."""
        return replace(self, findings=_ordered((*self.findings, *found)))

    @property
    def valid(self) -> bool:
        """Whether a cluster would take every object: schema, CEL rules and webhooks."""
        return not any(f.refuses for f in self.findings)

    def count(self, severity: Severity) -> int:
        """Return how many findings are of that severity."""
        return sum(f.severity == severity for f in self.findings)

    @property
    def schema_valid(self) -> bool:
        """Whether every object fits schema and CEL rules as it is written, without webhooks."""
        # A warning of the schema is what only KServe's mutating webhook puts right.
        return not any(
            f.source == "schema" or (f.source in ("yaml", "kind") and f.severity == "error")
            for f in self.findings
        )


StandsIn = Callable[[str], bool]
"""image -> whether a program of this machine takes its place."""
LookAt = Callable[[str, str], str]
"""(file, storageUri) -> what is wrong with the local path that it names, empty if nothing."""


def review(
    files: Mapping[str, Sequence[Document]],
    *,
    namespace: str = "default",
    strict: bool = False,
    look_at: LookAt | None = None,
    mirrors: Collection[str] = (),
    stands_in: StandsIn | None = None,
) -> list[FileReport]:
    """Return a report for each file, in the order given.

    Args:
        files: Path -> its documents.
        namespace: Where objects go that name none.
        strict: Unknown and repeated fields are errors, and what only a webhook puts right.
        look_at: Looks at local models (`storage.local.missing_model`); what it says is a warning.
        mirrors: Prefixes of URIs whose content comes from a local folder.
        stands_in: Says which images run without a container engine; a runtime with another one
            gets a note.
    """
    look = _Look(
        look_at or (lambda file, uri: ""), tuple(mirrors), stands_in or (lambda image: True)
    )
    project = Project(files, namespace)
    reports = []
    for path, documents in files.items():
        found: list[Finding] = []
        sources: list[ModelSource] = []
        for document in documents:
            reviewer = _Reviewer(document, project, look, strict=strict)
            found.extend(reviewer.findings())
            sources.extend(reviewer.sources)
        objects = sum(document.is_kubernetes for document in documents)
        reports.append(FileReport(path, _ordered(found), objects, tuple(sources)))
    return reports


def _ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (f.line, f.column, f.severity)))


@dataclass(frozen=True, slots=True)
class _Look:
    """What is known of this machine."""

    at: LookAt
    mirrors: tuple[str, ...]
    stands_in: StandsIn


class Project:
    """What the given files and a fresh installation hold together."""

    def __init__(self, files: Mapping[str, Sequence[Document]], namespace: str) -> None:
        self.namespace = namespace
        self.first: dict[tuple[str, str, str], Document] = {}
        self.objects: list[Object] = []
        self.found: dict[tuple[str, str | None], list[Object]] = {}
        for documents in files.values():
            for document in documents:
                if document.is_kubernetes and _identity(document.object, namespace) is not None:
                    obj = self.placed(document.object)
                    self.objects.append(obj)
                    self.first.setdefault(_key(obj), document)

    def placed(self, obj: Object) -> Object:
        """Return the object in its namespace."""
        if not scheme.of(obj).namespaced or obj["metadata"].get("namespace"):
            return obj
        return {**obj, "metadata": {**obj["metadata"], "namespace": self.namespace}}

    @cached_property
    def builtins(self) -> list[Object]:
        return builtin.builtin_objects()

    @cached_property
    def config(self) -> InferenceServiceConfig:
        own = (o for o in self.objects if o["kind"] == "ConfigMap" and namespace_of(o) == "kserve")
        named = (o for o in own if name_of(o) == "inferenceservice-config")
        return parse_config(next(named, builtin.config_map()))

    def lookup(self, resource: str, namespace: str | None) -> list[Object]:
        """Return all objects of a resource; the files' own replace built-in ones."""
        wanted = (resource, namespace)
        if wanted not in self.found:
            by_name = {
                (namespace_of(obj), name_of(obj)): obj
                for obj in (*self.builtins, *self.objects)
                if scheme.of(obj).id == resource and namespace in (None, namespace_of(obj))
            }
            self.found[wanted] = list(by_name.values())
        return self.found[wanted]


class _Reviewer:
    """The review of one document."""

    def __init__(self, document: Document, project: Project, look: _Look, *, strict: bool) -> None:
        self.document = document
        self.project = project
        self.strict = strict
        self.look = look
        self.sources: list[ModelSource] = []
        self.label = ""
        if document.is_kubernetes:
            metadata = document.object.get("metadata")
            name = metadata.get("name") if isinstance(metadata, dict) else None
            self.label = f"{document.object['kind']}/{name or ''}".rstrip("/")

    def findings(self) -> Iterator[Finding]:
        document = self.document
        if document.error is not None:
            line, column = document.error.position
            yield Finding(line, column, "error", "", "", document.error.message, "yaml")
            return
        if not document.is_kubernetes:
            yield self.finding((), _what_is_missing(document.object), "kind")
            return
        obj = document.object
        if not scheme_knows(obj):
            yield from self.unknown_kind(obj)
            return
        yield from self.repeated_and_unknown(obj)
        broken = list(self.schema_findings(obj))
        yield from broken
        if any(f.severity == "error" for f in broken):
            return
        yield from self.twice(obj)
        placed = self.project.placed(obj)
        refusal = list(self.webhooks(placed))
        yield from refusal
        if not any(f.severity == "error" for f in refusal):
            yield from self.name(placed)
            yield from self.runtime(placed)
            yield from self.revisions(placed)
            yield from self.explainer(placed)
            yield from self.storage(placed)
            yield from self.resources(placed)
            self.sources.extend(self.other_sources(placed))
            yield from self.gaps(placed)

    def finding(
        self,
        path: Path_,
        message: str,
        source: Source,
        severity: Severity = "error",
        details: Iterable[str] = (),
    ) -> Finding:
        line, column = self.document.position_of(path)
        field = schema.dotted(path)
        return Finding(line, column, severity, self.label, field, message, source, tuple(details))

    def unknown_kind(self, obj: Object) -> Iterator[Finding]:
        version, kind = obj["apiVersion"], obj["kind"]
        group = version.rpartition("/")[0]
        message = f'no matches for kind "{kind}" in version "{version}"'
        served = [r.api_version for r in scheme.ALL if r.kind == kind]
        if served:
            better = schema.closest(version, served) or served[-1]
            message += f'; did you mean apiVersion "{better}"?'
            yield self.finding(("apiVersion",), message, "kind")
        elif group in _OUR_GROUPS or not group or schema.closest(kind, sorted(_KINDS)):
            better = schema.closest(kind, sorted(_KINDS))
            message += f'; did you mean "{better}"?' if better else ""
            is_ours = group in _OUR_GROUPS or better
            yield self.finding(("kind",), message, "kind", "error" if is_ours else "warning")
        else:
            message = f'not checked: kserve-local has no kind "{kind}" in "{version}"'
            yield self.finding(("kind",), message, "field", "warning")

    def repeated_and_unknown(self, obj: Object) -> Iterator[Finding]:
        severity: Severity = "error" if self.strict else "warning"
        for path, (line, column) in self.document.duplicates:
            field = schema.dotted(path)
            message = f'field "{field}" is given twice; the last one counts'
            yield Finding(line, column, severity, self.label, field, message, "field")
        for found in schema.unknown(obj):
            parent = schema.dotted(found.path[:-1])
            message = f'unknown field "{found.path[-1]}"' + (f" in {parent}" if parent else "")
            message += f'; did you mean "{found.suggestion}"?' if found.suggestion else ""
            yield self.finding(found.path, message, "field", severity)

    def schema_findings(self, obj: Object) -> Iterator[Finding]:
        written = schema.check(obj)
        if not written:
            return
        stays = {(f.field, f.message) for f in self.after_mutation(obj)}
        for found in written:
            message = f"{found.field}: {found.message}"
            if found.suggestion:
                message += f'; did you mean "{found.suggestion}"?'
            healed = (_after_conversion(found.field), found.message) not in stays and (
                found.field,
                found.message,
            ) not in stays
            if healed:
                message += " (KServe's mutating webhook puts it right)"
            source: Source = "metadata" if found.path[0] == "metadata" else "schema"
            # Strict asks whether the manifest is right as it stands.
            lenient = healed and not self.strict
            yield self.finding(found.path, message, source, "warning" if lenient else "error")

    def after_mutation(self, obj: Object) -> list[schema.Finding]:
        """Return what is still wrong once KServe's mutating webhook has rewritten the object."""
        if not isinstance(obj.get("metadata"), dict):
            return schema.check(obj)
        try:
            return schema.check(self.mutated(obj))
        except (TypeError, AttributeError, ValueError, KeyError):
            # Too broken for the webhook's Go types: a cluster refuses it as well.
            return schema.check(obj)

    def mutated(self, obj: Object) -> Object:
        pruned = schema.prune(obj)
        if obj["kind"] in ("InferenceService", "LLMInferenceService"):
            pruned = schema.normalize_quantities(pruned)
        return defaults.default(pruned, config=self.project.config, lookup=self.project.lookup)

    def twice(self, obj: Object) -> Iterator[Finding]:
        placed = self.project.placed(obj)
        first = self.project.first.get(_key(placed))
        if first is not None and first is not self.document:
            line, _ = first.position
            where = (
                f"at line {line}" if first.path == self.document.path else f"in {first.path}:{line}"
            )
            message = (
                f"{self.label} is also {where}; kubectl keeps the last one, kserve-local "
                "up refuses both"
            )
            yield self.finding(("metadata", "name"), message, "project", "warning")

    def webhooks(self, obj: Object) -> Iterator[Finding]:
        try:
            warnings = self.admit(obj)
        except Invalid as error:
            for cause in error.causes:
                path = blame.path_of(cause.field)
                yield self.finding(path, f"{cause.field}: {cause.message}", "webhook")
            if not error.causes:
                yield self.finding(("spec",), str(error), "webhook")
        except Forbidden as error:
            refusal = str(error)
            path = blame.field_of(obj, refusal, self.admit)
            yield self.finding(path, blame.reason(refusal), "webhook")
        else:
            for warning in warnings:
                path = blame.named_in(warning) or ("spec",)
                yield self.finding(path, warning, "webhook", "warning")

    def admit(self, obj: Object) -> list[str]:
        stored = schema.apply_defaults(self.mutated(obj))
        return validation.validate(
            stored, old=None, config=self.project.config, lookup=self.project.lookup
        )

    def name(self, obj: Object) -> Iterator[Finding]:
        """Judge the name that KServe's controller gives the workload, by what must hold it."""
        if obj["kind"] != "InferenceService":
            return
        mode = self.project.config.deployment_mode(annotations_of(obj).get(names.DEPLOYMENT_MODE))
        if mode == names.MODEL_MESH_MODE:
            return
        variant = obj["spec"]["predictor"].get("name") or ""
        given = [c for c in shape.COMPONENTS if obj["spec"].get(c) is not None]
        made = [names.component_name(name_of(obj), c, variant) for c in given]
        name = max(made, key=len)
        if mode == names.STANDARD_MODE:
            yield from self.host(obj, name)
            return
        if len(name) > _LABEL:
            problem = name_problem(name, scheme.KNATIVE_SERVICE)
            longest = len(name_of(obj)) - len(name) + _LABEL
            message = f'the name is too long: the Knative Service "{name}" {problem}'
            step = f"Next step: a name of at most {longest} characters"
            yield self.finding(("metadata", "name"), message, "runtime", details=[step])

    def host(self, obj: Object, workload: str) -> Iterator[Finding]:
        """Judge the host that Standard mode gives a workload by the domain template as shipped."""
        if self.project.config.ingress.domain_template != IngressConfig().domain_template:
            return
        label = f"{workload}-{namespace_of(obj) or 'default'}"
        if len(label) > _LABEL:
            longest = len(name_of(obj)) - len(label) + _LABEL
            message = (
                f'the name is too long: the host\'s label "{label}" has over {_LABEL} characters'
            )
            step = f"Next step: a name of at most {longest} characters"
            yield self.finding(("metadata", "name"), message, "runtime", details=[step])

    def runtime(self, obj: Object) -> Iterator[Finding]:
        if obj["kind"] != "InferenceService" or _is_model_mesh(obj):
            return
        isvc = self.mutated(obj)
        model = runtime_selection.model_of(isvc)
        if not model:
            return
        runtimes = self.project.lookup(scheme.SERVING_RUNTIME.id, None)
        cluster = self.project.lookup(scheme.CLUSTER_SERVING_RUNTIME.id, None)
        path = self.model_path(obj)
        try:
            chosen = runtime_selection.select(isvc, runtimes=runtimes, cluster_runtimes=cluster)
        except runtime_selection.SelectionError as error:
            yield self.no_runtime(isvc, error, path, runtimes, cluster)
            return
        if builtin.is_local_only(chosen.runtime) and chosen.runtime not in self.project.objects:
            message = (
                f"runtime {chosen.name} is kserve-local's own: a cluster has no such runtime, so"
                " send it along with the service"
            )
            yield self.finding((*path, "runtime"), message, "runtime", "warning")
        image = model.get("image") or (shape.predictor_container(chosen.runtime["spec"]) or {}).get(
            "image"
        )
        if image and not self.look.stands_in(image):
            field = ("runtime",) if model.get("runtime") else ("modelFormat", "name")
            message = (
                f"kserve-local {gaps.VERSION} has no stand-in for {chosen.name}; it runs in"
                " Docker only"
            )
            yield self.finding((*path, *field), message, "gap", "note")

    def revisions(self, obj: Object) -> Iterator[Finding]:
        """Tell what Knative's webhook says once the controller asks for a revision."""
        if obj["kind"] != "InferenceService" or _is_model_mesh(obj):
            return
        config = self.project.config
        isvc = self.mutated(obj)
        own = annotations_of(isvc)
        if config.deployment_mode(own.get(names.DEPLOYMENT_MODE)) != names.KNATIVE_MODE:
            return
        found = self.project.lookup(scheme.CONFIG_MAP.id, CLUSTER_CONFIG.namespace)
        cluster = next((c for c in found if name_of(c) == CLUSTER_CONFIG.name), {})
        for name in ("predictor", "transformer", "explainer"):
            component = isvc["spec"].get(name)
            if component is None:
                continue
            given = {**own, **(component.get("annotations") or {})}
            passed = {k: v for k, v in given.items() if k not in config.annotations_disallowed}
            problems = revision_template.problems(component, passed, cluster.get("data") or {})
            for message, blamed in problems:
                path: Path_ = ("spec", name, blamed)
                if "/" in blamed:
                    nearer = blamed in (component.get("annotations") or {})
                    path = (*path[:2], "annotations", blamed)
                    path = path if nearer else ("metadata", "annotations", blamed)
                text = f"Knative refuses its revisions: {message}: {blamed}"
                yield self.finding(path, text, "revision")

    def explainer(self, obj: Object) -> Iterator[Finding]:
        """Tell that ART runs as its image only."""
        art = obj["kind"] == "InferenceService" and (obj["spec"].get("explainer") or {}).get("art")
        config = self.project.config
        if art and not self.look.stands_in(art.get("image") or config.art_image):
            text = f"kserve-local {gaps.VERSION} has no stand-in for ART explanations; they run in"
            yield self.finding(("spec", "explainer", "art"), f"{text} Docker only", "gap", "note")

    def storage(self, obj: Object) -> Iterator[Finding]:
        """Judge each storageUri as KServe's controller will."""
        if obj["kind"] != "InferenceService" or _is_model_mesh(obj):
            return
        containers = self.project.lookup(scheme.CLUSTER_STORAGE_CONTAINER.id, None)
        for path, uri in self.predictor_sources(obj):
            try:
                storage_uris.check(uri, containers)
            except Invalid as error:
                message, *details = str(error).splitlines()
                yield self.finding(path, message, "runtime", details=details)
                continue
            missing = storage_uris.unfetched(uri)
            if missing and not uri.startswith(self.look.mirrors):
                shown = storage_uris.without_secrets(uri)
                gap = gaps.Gap(path, f"storageUri {shown}: {missing} is not fetched")
                yield self.finding(path, gap.sentence(), "gap", "note")
                continue
            predictor = obj["spec"]["predictor"]
            self.sources.append(ModelSource(self.document, obj, predictor, path, uri))
            wrong = self.look.at(self.document.path, uri)
            if wrong:
                yield self.finding(path, wrong, "project", "warning")

    def resources(self, obj: Object) -> Iterator[Finding]:
        """Judge GPUs that are asked for as the API server will, once there is a Deployment."""
        if obj["kind"] != "InferenceService" or _is_model_mesh(obj):
            return
        predictor = obj["spec"]["predictor"]
        places: list[tuple[Path_, Mapping[str, Any]]] = []
        if shape.framework_of(predictor) is not None:
            path = self.model_path(obj)
            places.append((path, predictor[path[-1]]))
        for number, container in enumerate(predictor.get("containers") or ()):
            places.append((("spec", "predictor", "containers", number), container))
        for path, container in places:
            for error in validation_resources.problems(container, schema.dotted(path)):
                field = "limits" if ".limits" in error.path else "requests"
                yield self.finding((*path, "resources", field), str(error), "runtime")

    def gaps(self, obj: Object) -> Iterator[Finding]:
        """Tell what a cluster carries out and this version does not."""
        if scheme.of(obj) is scheme.INFERENCE_SERVICE:
            obj = self.mutated(obj)
        for gap in gaps.gaps_of(obj, self.project.config):
            path = gap.path
            if path == ("spec", "predictor", "model"):
                path = self.model_path(self.document.object)
            yield self.finding(path, gap.sentence(), "gap", "note")

    def other_sources(self, obj: Object) -> Iterator[ModelSource]:
        """Yield the sources that no rule of the predictor's controller is about."""
        spec = obj["spec"] if isinstance(obj.get("spec"), dict) else {}
        found: list[tuple[Mapping[str, Any], Path_, Any]] = []
        if scheme.of(obj) is scheme.INFERENCE_SERVICE and not _is_model_mesh(obj):
            predictor = spec["predictor"]
            if ((predictor.get("model") or {}).get("storage") or {}).get("path"):
                path: Path_ = ("spec", "predictor", "model", "storage", "path")
                yield ModelSource(self.document, obj, predictor, path, "")
            for name in ("transformer", "explainer"):
                part = spec.get(name) or {}
                found += [(part, ("spec", name, *at), uri) for at, uri in _written(part)]
        elif scheme.of(obj) is scheme.TRAINED_MODEL:
            found.append(({}, ("spec", "model", "storageUri"), spec["model"].get("storageUri")))
        elif scheme.of(obj) is scheme.LLM_INFERENCE_SERVICE:
            uri = (spec.get("model") or {}).get("uri")
            found.append((spec.get("template") or {}, ("spec", "model", "uri"), uri))
        for component, path, uri in found:
            if uri and not storage_uris.unfetched(str(uri)):
                yield ModelSource(self.document, obj, component, path, str(uri))

    def predictor_sources(self, obj: Object) -> Iterator[tuple[Path_, str]]:
        """Yield where each source of the predictor's model is written, and its URI."""
        predictor = obj["spec"]["predictor"]
        single = shape.storage_uri(predictor)
        if single is not None:
            yield self.source_path(obj), single
        for number, entry in enumerate(predictor.get("storageUris") or ()):
            yield ("spec", "predictor", "storageUris", number, "uri"), str(entry["uri"])

    def source_path(self, obj: Object) -> Path_:
        """Return where the single source is written: `storageUri`, or a container's variable."""
        predictor = obj["spec"]["predictor"]
        if shape.framework_of(predictor) is not None:
            return (*self.model_path(obj), "storageUri")
        container = shape.predictor_container(predictor)
        number = next(i for i, c in enumerate(predictor["containers"]) if c is container)
        variables = [e.get("name") for e in predictor["containers"][number]["env"]]
        at = variables.index(names.STORAGE_URI_ENV)
        return ("spec", "predictor", "containers", number, "env", at, "value")

    def model_path(self, obj: Object) -> Path_:
        predictor = obj["spec"]["predictor"]
        fields = ("model", *shape.FRAMEWORKS)
        field = next((f for f in fields if predictor.get(f) is not None), "model")
        return ("spec", "predictor", field)

    def no_runtime(
        self,
        isvc: Object,
        error: runtime_selection.SelectionError,
        path: Path_,
        runtimes: Sequence[Object],
        cluster: Sequence[Object],
    ) -> Finding:
        model = runtime_selection.model_of(isvc)
        name, version = runtime_selection.model_format(model)
        wanted = f"{name}/{version}" if version else name
        asked = model.get("runtime")
        misses = runtime_selection.considered(isvc, runtimes, cluster)
        if asked:
            known = [name_of(r) for r in (*runtimes, *cluster)]
            better = "" if asked in known else schema.closest(str(asked), known)
            message = f"runtime {asked}: {error.event_message}"
            message += f'; did you mean "{better}"?' if better else ""
            path = (*path, "runtime")
        else:
            message = f"no runtime fits modelFormat {wanted}"
            protocol = model.get("protocolVersion")
            message += f" with protocol {protocol}" if protocol else ""
            near = runtime_selection.near_format(isvc, runtimes=runtimes, cluster_runtimes=cluster)
            message += f'; did you mean "{near}"?' if near else ""
            path = (*path, "modelFormat", "name")
        details = _folded(misses)
        ways = runtime_selection.ways_out(isvc, runtimes=runtimes, cluster_runtimes=cluster)
        if ways:
            details.append(f"Next step: {ways}")
        return self.finding(path, message, "runtime", details=details)


def _folded(misses: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each runtime and why it does not fit, or for all that say the same."""
    of: dict[str, list[str]] = {}
    for name, why in misses:
        of.setdefault(why, []).append(name)
    width = max((len(found[0]) for found in of.values() if len(found) == 1), default=0)
    return [
        f"{found[0].ljust(width)}  {why}" if len(found) == 1 else f"{why}: {', '.join(found)}"
        for why, found in of.items()
    ]


def _written(component: Mapping[str, Any]) -> Iterator[tuple[Path_, Any]]:
    """Yield where in a transformer or explainer a source is written, and its URI."""
    art = component.get("art") or {}
    yield ("art", "storageUri"), art.get("storageUri")
    for number, container in enumerate(component.get("containers") or ()):
        for at, entry in enumerate(container.get("env") or ()):
            if entry.get("name") == names.STORAGE_URI_ENV:
                yield ("containers", number, "env", at, "value"), entry.get("value")
    for number, entry in enumerate(component.get("storageUris") or ()):
        yield ("storageUris", number, "uri"), entry["uri"]


def scheme_knows(obj: Object) -> bool:
    """Whether the object's kind and version are served."""
    try:
        scheme.of(obj)
    except NotFound:
        return False
    return True


def is_known(document: Document) -> bool:
    """Whether a document is meant for kserve-local, judging by its kind and group only."""
    if not document.is_kubernetes:
        return False
    group = document.object["apiVersion"].rpartition("/")[0]
    return (
        scheme_knows(document.object)
        or group in _OUR_GROUPS
        or (document.object["kind"] in _KINDS and "kubeflow" in group)
    )


def lacks_version(document: Document) -> bool:
    """Whether a document has a kind of KServe's and no `apiVersion`: a slip, not another format."""
    content = document.object if document.error is None else None
    return (
        isinstance(content, dict)
        and not content.get("apiVersion")
        and content.get("kind") in _KINDS
        and "spec" in content
    )


def _identity(obj: Object, namespace: str) -> tuple[str, str, str] | None:
    """Return what makes an object itself, None if it is too broken to have that."""
    metadata = obj.get("metadata")
    if not scheme_knows(obj) or not isinstance(metadata, dict):
        return None
    if not isinstance(metadata.get("name"), str) or not isinstance(
        metadata.get("namespace", ""), str
    ):
        return None
    return scheme.of(obj).id, metadata.get("namespace") or namespace, metadata["name"]


def _key(obj: Object) -> tuple[str, str, str]:
    return scheme.of(obj).id, namespace_of(obj), str(obj["metadata"].get("name") or "")


def _what_is_missing(value: Any) -> str:
    if not isinstance(value, dict):
        return f"not a Kubernetes object but {schema.type_name(value)}"
    missing = [
        name
        for name in ("apiVersion", "kind")
        if not isinstance(value.get(name), str) or not value[name]
    ]
    return f"not a Kubernetes object: {' and '.join(missing)} not set"


def _is_model_mesh(obj: Object) -> bool:
    """Whether KServe's own controller leaves the predictor alone."""
    return annotations_of(obj).get(names.DEPLOYMENT_MODE) == names.MODEL_MESH_MODE


def _after_conversion(field: str) -> str:
    """Return the field where a legacy framework field goes: `spec.predictor.model...`."""
    for name in shape.FRAMEWORKS:
        prefix = f"spec.predictor.{name}"
        if field == prefix or field.startswith((f"{prefix}.", f"{prefix}[")):
            return f"spec.predictor.model{field[len(prefix) :]}"
    return field
