"""Admission: what happens to an object between the wire and the store.

In Kubernetes' order: unknown fields (reported, then pruned), schema defaults, mutating webhook
(`api.defaults`), schema and CEL rules (422 Invalid), validating webhook (`api.validation`, 403).
Reads the store for the configuration and for what webhooks look up; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kserve_local.api import config, defaults, schema, scheme, validation, validation_resources
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import Key, Object, name_of, namespace_of
from kserve_local.api.scheme import ResourceType
from kserve_local.errors import BadRequest, Forbidden, NotFound
from kserve_local.store.store import Store

CONFIG_KEY = Key(scheme.CONFIG_MAP.id, "kserve", "inferenceservice-config")
_WRONG_TYPE = re.compile(r'must be of type (\S+): "(\w+)"$')
_GO_VALUES = {"integer": "number", "boolean": "bool"}
_GO_TYPES = {"integer": "int32", "boolean": "bool", "array": "[]", "object": "map"}
_PERMANENT = frozenset({"default", "kube-system", "kube-public"})
# Kinds that pass through Go types in a mutating webhook on their way into the store.
_DECODED = frozenset({"InferenceService", "LLMInferenceService"})


class Admission:
    """Admits objects into one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def config(self) -> InferenceServiceConfig:
        """The current `inferenceservice-config`, defaults where it is missing."""
        return config.parse(self._store.find(CONFIG_KEY))

    def admit(
        self,
        kind: ResourceType,
        obj: Object,
        old: Object | None,
        *,
        duplicates: Sequence[str] = (),
        field_validation: str = "Warn",
    ) -> tuple[Object, list[str]]:
        """Return the object to store and the warnings for the client.

        Args:
            obj: As sent, in the version of the request.
            old: As stored; None on create.
            duplicates: Paths of repeated keys in what was sent.
            field_validation: `Strict`, `Warn` or `Ignore` for unknown and repeated fields.

        Raises:
            BadRequest: Unknown or repeated fields under `Strict`.
            Invalid: Schema, CEL or metadata rules; one cause per finding.
            Forbidden: A webhook refused.
        """
        warnings: list[str] = []
        if field_validation != "Ignore":
            found = [f'duplicate field "{path}"' for path in duplicates]
            found += [f'unknown field "{path}"' for path in schema.unknown_fields(obj)]
            if found and field_validation == "Strict":
                raise BadRequest(f"strict decoding error: {', '.join(found)}")
            warnings += found
        obj = schema.apply_defaults(schema.prune(obj))
        try:
            obj = defaults.default(obj, config=self.config, lookup=self._lookup)
        except (AttributeError, KeyError, TypeError, ValueError):
            check_schema(obj, old)  # a field of the wrong type; anything else is a fault of ours
            raise
        if not kind.custom or obj["kind"] in _DECODED:
            obj = schema.normalize_quantities(obj)
        check_schema(obj, old)
        validation_resources.check(obj)
        warnings += validation.validate(obj, old=old, config=self.config, lookup=self._lookup)
        return obj, warnings

    def admit_into_namespace(self, kind: ResourceType, obj: Object) -> None:
        """Check that the Namespace of a new object takes content.

        Raises:
            NotFound: There is no such Namespace.
            Forbidden: It is being deleted.
        """
        if not kind.namespaced:
            return
        name = namespace_of(obj)
        namespace = self._store.find(Key(scheme.NAMESPACE.id, "", name))
        if namespace is None:
            raise NotFound(f'namespaces "{name}" not found')
        if "deletionTimestamp" in namespace["metadata"]:
            raise Forbidden(
                f'{kind.id} "{obj["metadata"].get("name", "")}" is forbidden: unable to create new '
                f"content in namespace {name} because it is being terminated"
            )

    def admit_deletion(self, kind: ResourceType, obj: Object) -> list[str]:
        """Return the warnings of the webhook of a deletion.

        Raises:
            Forbidden: It has to stay: a permanent Namespace, or something that is in use.
        """
        if kind is scheme.NAMESPACE and name_of(obj) in _PERMANENT:
            raise Forbidden(
                f'namespaces "{name_of(obj)}" is forbidden: this namespace may not be deleted'
            )
        return validation.validate_deletion(obj, config=self.config, lookup=self._lookup)

    def _lookup(self, resource: str, namespace: str | None) -> Sequence[Object]:
        return self._store.list(resource, namespace=namespace)


def check_schema(obj: Object, old: Object | None) -> None:
    """Check an object against metadata rules, its schema and CEL rules.

    Args:
        old: As stored, for rules that compare; None on create.

    Raises:
        Invalid: With one cause per finding.
    """
    if old is not None and old["apiVersion"] != obj["apiVersion"]:
        old = {**old, "apiVersion": obj["apiVersion"]}
    findings = schema.check(obj, old=old)
    if findings and not scheme.of(obj).custom:
        check_decodes(obj, findings)
    if findings:
        raise schema.refuse(obj, findings)


def check_decodes(obj: Object, findings: Sequence[schema.Finding]) -> None:
    """Check what decoding into a Go type fails at: built-in kinds are refused with 400 then.

    Raises:
        BadRequest: A field is of another type, in the words of Go's JSON decoder.
    """
    for finding in findings:
        types = _WRONG_TYPE.search(finding.message) if finding.kind == "type" else None
        if types is None:
            continue
        wanted, got = types.groups()
        kind, version = str(obj["kind"]), str(obj["apiVersion"]).rpartition("/")[2]
        path = ".".join(part for part in finding.path if isinstance(part, str))
        raise BadRequest(
            f'{kind} in version "{version}" cannot be handled as a {kind}: json: cannot unmarshal '
            f"{_GO_VALUES.get(got, got)} into Go struct field {kind}.{path} of type "
            f"{_GO_TYPES.get(wanted, wanted)}"
        )
