"""Host, path or model name -> route: one `RouteTable` compiled for look-up. Pure.

A request is matched in this order: exact host; `/serving/<namespace>/<name>` on a host that names
this machine only (localhost, an address, a single label) or the domain that services live in; and
on a host that names this machine only, the short form by model name. Everything else is a miss,
which the cluster's gateway answers with 404: also a foreign name that resolves to this machine,
by which a web page could otherwise reach the models.

Source: DESIGN section 5, traffic.md sections 7.2, 7.3.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

import orjson

from kserve_local.interfaces.routing import Route, RouteTable

PEEK_LIMIT = 256 * 1024
EXPLAINER = "explainer"
_MOST_MODELS = 20
# The gateway's own paths, on every host that is no route's.
RESERVED = b"/-/"

_V1_MODEL = re.compile(r"/(?:openai/)?v1/models/(.+?)(?::predict|:explain)?/?")
_V2_MODEL = re.compile(r"/v2/(?:repository/)?models/([^/]+)(?:/.*)?")
# Calls whose message says in its first field (`name` or `model_name`, both number 1) which model.
_RPC_BY_BODY = re.compile(
    r"/inference\.GRPCInferenceService/"
    r"(?:Model(?:Ready|Metadata|Infer|StreamInfer)|RepositoryModel(?:Load|Unload))"
)
_BY_BODY = re.compile(r"(?:/openai)?/v1/(?:chat/completions|completions|embeddings|rerank)/?")
_PATH_FORM = re.compile(rb"(/serving/[^/?]+/[^/?]+)(?=[/?]|\Z)")
# As the cluster's rule reads: of the raw path, no dots in a model's name, V1 only.
_EXPLAIN = re.compile(rb"/v1/models/[A-Za-z0-9_-]+:explain(?=\?|\Z)")
_ADDRESS = re.compile(rb"[0-9.]+|\[[0-9a-f:.]+\]")


class CompiledRoute:
    """A route with what every request needs made ready.

    Attributes:
        shares: Running sums of the percents; empty with one target.
        lines: Header lines that the cluster's gateway adds on this route; `fields`: for HTTP/2.
        found: The match by host, which every request of the route shares.
        explain: Where `:explain` goes instead; None: no difference.
        inner: By a component's own name, as one component asks another.
        limit: Seconds a request may take here; None: what its target says.
        hosts, domains, path: By which it is looked up.
    """

    __slots__ = (
        "domains",
        "explain",
        "fields",
        "found",
        "hosts",
        "ids",
        "inner",
        "limit",
        "lines",
        "path",
        "route",
        "shares",
    )

    def __init__(self, route: Route) -> None:
        self.route = route
        self.found = Found(self)
        self.limit = math.inf if route.timeout == 0 else route.timeout
        self.hosts = tuple(host.encode() for host in route.hosts)
        self.domains = frozenset(host.split(b".", 2)[-1] for host in self.hosts)
        self.path = route.path.encode()
        targets = [t for t in route.targets if t.percent > 0] or list(route.targets[:1])
        self.ids = tuple(t.id for t in targets)
        self.shares = (
            list(itertools.accumulate(t.percent for t in targets)) if len(targets) > 1 else []
        )
        # No VirtualService of KServe's stands before a graph, so nothing adds these there.
        named = route.names_service and route.component != "graph"
        self.inner = not route.names_service
        self.fields: tuple[tuple[bytes, bytes], ...] = ()
        self.lines = b""
        if named:
            service, namespace = route.service.encode(), route.namespace.encode()
            self.fields = (
                (b"kserve-isvc-name", service),
                (b"kserve-isvc-namespace", namespace),
            )
            self.lines = b"KServe-Isvc-Name: %b\r\nKServe-Isvc-Namespace: %b\r\n" % (
                service,
                namespace,
            )
        self.explain: CompiledRoute | None = None
        if route.explain:
            self.explain = CompiledRoute(
                replace(
                    route,
                    component=EXPLAINER,
                    targets=route.explain,
                    explain=(),
                    timeout=route.explain_timeout,
                )
            )

    def draw(self, random: float) -> int:
        """Return the index of the target that the draw `random` (0 <= random < 1) falls on."""
        return bisect.bisect_right(self.shares, random * self.shares[-1])

    def match(self, target: bytes, cut: int = 0) -> Found:
        """Return the match for a path and query of which the first `cut` bytes are not the
        service's.
        """
        compiled = self
        if self.explain is not None and _EXPLAIN.match(target, cut):
            compiled = self.explain
        return Found(compiled, cut) if cut else compiled.found


@dataclass(frozen=True, slots=True)
class Found:
    """A match; `cut` bytes of the target's path go."""

    route: CompiledRoute
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Missed:
    """No match. `model` is set when the short form's model is unknown or claimed twice.

    Args:
        models: Some of the models that there are, where `model` is unknown.
    """

    hint: str
    model: str = ""
    text: str = ""
    models: tuple[str, ...] = ()


class NeedsModel:
    """The short form of OpenAI: the route hangs on `model` in the body."""


class CompiledTable:
    """One snapshot. Look-ups never change it.

    Args:
        any_host: Any name may stand for this machine: requests carry a token.
    """

    def __init__(self, table: RouteTable, *, any_host: bool = False) -> None:
        self.version = table.version
        self._any_host = any_host
        self.table = table
        self.routes: list[CompiledRoute] = []
        self.by_host: dict[bytes, CompiledRoute] = {}
        self.by_path: dict[bytes, CompiledRoute] = {}
        self.by_model: dict[str, list[CompiledRoute]] = {}
        self._domains: set[bytes] = set()
        self.only: CompiledRoute | None = None
        self._append([CompiledRoute(r) for r in table.routes])

    def _append(self, routes: Sequence[CompiledRoute]) -> None:
        """Index further routes; who was first keeps a name."""
        self.routes += routes
        for compiled in routes:
            for host in compiled.hosts:
                self.by_host.setdefault(host, compiled)
            self._domains |= compiled.domains
            if compiled.path:
                self.by_path.setdefault(compiled.path, compiled)
            for model in compiled.route.models:
                self.by_model[model] = [*self.by_model.get(model, ()), compiled]
        self.only = self._find_only()

    def _find_only(self) -> CompiledRoute | None:
        """Return the entry of the only service; with none, the only route."""
        entries = (c for c in self.routes if c.route.models or c.route.path)
        first, second = next(entries, None), next(entries, None)
        if first is None and len(self.routes) == 1:
            return self.routes[0]
        return first if second is None else None

    def following(self, table: RouteTable) -> CompiledTable:
        """Return the table that comes after this one.

        Of a thousand routes few are new each time, and most of those differ in their targets only
        or come last: the routes that are the same objects keep what was compiled of them, and as
        long as no name goes or moves, so do the indexes.
        """
        new = CompiledTable(RouteTable(table.version), any_host=self._any_host)
        new.table = table
        old = self.table.routes
        pairs = zip(old, table.routes, strict=False)
        changed = [n for n, (was, now) in enumerate(pairs) if was is not now]
        if len(old) > len(table.routes) or not all(
            _has_names_of(old[n], table.routes[n]) for n in changed
        ):
            known = {id(c.route): c for c in self.routes}
            new._append([known.get(id(r)) or CompiledRoute(r) for r in table.routes])
            return new
        new.routes, new._domains = [*self.routes], {*self._domains}
        new.by_host, new.by_path = self.by_host.copy(), self.by_path.copy()
        new.by_model = self.by_model.copy()
        for n in changed:
            new._replace(n, CompiledRoute(table.routes[n]))
        new._append([CompiledRoute(r) for r in table.routes[len(old) :]])
        return new

    def _replace(self, place: int, compiled: CompiledRoute) -> None:
        """Put a route of the same names into the place of another."""
        was, self.routes[place] = self.routes[place], compiled
        for host in compiled.hosts:
            if self.by_host[host] is was:
                self.by_host[host] = compiled
        if compiled.path and self.by_path[compiled.path] is was:
            self.by_path[compiled.path] = compiled
        for model in compiled.route.models:
            self.by_model[model] = [compiled if c is was else c for c in self.by_model[model]]

    def find(self, host: bytes, target: bytes) -> Found | Missed | NeedsModel:
        """Return where a request goes.

        Args:
            host: Lower case, without port.
            target: Path and query.
        """
        compiled = self.by_host.get(host)
        if compiled is not None:
            return compiled.found if compiled.explain is None else compiled.match(target)
        if target.startswith(RESERVED):
            return Missed(self.hint())
        local = self._any_host or names_this_machine(host)
        if (local or host in self._domains) and (prefix := _PATH_FORM.match(target)):
            compiled = self.by_path.get(prefix.group(1))
            if compiled is not None:
                return compiled.match(target, prefix.end())
            return Missed(self.hint())
        if not local:
            return Missed(self.hint())
        path = unquote(target.partition(b"?")[0].decode("latin-1"))
        match = _V2_MODEL.fullmatch(path) or _V1_MODEL.fullmatch(path)
        if match:
            found = self.find_model(match.group(1))
            return found.route.match(target) if isinstance(found, Found) else found
        if self.only is not None:
            return Found(self.only)
        if _BY_BODY.fullmatch(path) or _RPC_BY_BODY.fullmatch(path):
            return NeedsModel()
        return Missed(self.hint())

    def successor(self, route: Route) -> CompiledRoute | None:
        """Return this table's route of the same name as `route`, which an older one had."""
        if route.hosts:
            compiled = self.by_host.get(route.hosts[0].encode())
        else:
            compiled = self.by_path.get(route.path.encode())
        if compiled is not None and route.component == EXPLAINER and compiled.explain is not None:
            return compiled.explain
        return compiled

    def find_model(self, model: str) -> Found | Missed:
        """Return the one route that claims `model`.

        With one service, everything is its business, also to say that it has no such model.
        """
        claims = self.by_model.get(model, ())
        if len(claims) == 1:
            return Found(claims[0])
        if self.only is not None:
            return Found(self.only)
        if not claims:
            text = f"Model with name {model} does not exist."
            return Missed(
                self.hint(), model, text, (*itertools.islice(self.by_model, _MOST_MODELS),)
            )
        owners = ", ".join(sorted(f"{c.route.namespace}/{c.route.service}" for c in claims))
        text = f"Model with name {model} is served by {owners}; name one by host or path."
        return Missed(self.hint(), model, text)

    def hint(self) -> str:
        """Return the names that are served, for a header; at most about 900 characters."""
        entries = [c.route for c in self.routes if c.route.models or c.route.path] or [
            c.route for c in self.routes
        ]
        if not entries:
            return "nothing is served yet"
        names = [
            " or ".join(filter(None, (r.hosts[0] if r.hosts else "", r.path))) for r in entries
        ]
        text = "served: " + ", ".join(names[:8])
        return text[:880] + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _has_names_of(route: Route, other: Route) -> bool:
    """Whether two routes are looked up by the same names."""
    return (route.hosts, route.path, route.models) == (other.hosts, other.path, other.models)


def rpc_model_of(body: bytes) -> str | None:
    """Return the first field of a gRPC message, of which `body` is a beginning, if it is a text.

    None: not seen yet. Empty: there will be none (another field, or the message is compressed).
    """
    if body[:1] not in (b"\x00", b""):
        return ""
    if len(body) < 7:
        # Five bytes before the message (compressed, length), two for tag and length of a field.
        return "" if len(body) >= 5 and not any(body[1:5]) else None
    if body[5] != 0x0A:
        return ""
    size, at, shift = 0, 6, 0
    while True:
        if at >= len(body):
            return None
        byte = body[at]
        size |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if not byte & 0x80:
            break
        if shift > 28:
            return ""
    if size > _LONGEST_MODEL:
        return ""
    if len(body) < at + size:
        return None
    return body[at : at + size].decode(errors="replace")


_LONGEST_MODEL = 4096
_BLANKS = b" \t\r\n"
_STRING = re.compile(rb'"((?:[^"\\\x00-\x1f]|\\.)*+)"', re.DOTALL)
_SCALAR = re.compile(rb"[^\s,{}\[\]\"]++")
_NESTED = re.compile(rb'[^"{}\[\]]++|"(?:[^"\\]|\\.)*+"|[{}\[\]]', re.DOTALL)


def model_of(body: bytes) -> str | None:
    """Return the top-level `model` string of a JSON object of which `body` is a beginning.

    None: not seen yet. Empty: there will be none (no object, no string, no such key).
    """
    at = _skip_blanks(body, 0)
    if at >= len(body):
        return None
    if body[at : at + 1] != b"{":
        return ""
    at += 1
    while True:
        at = _skip_blanks(body, at)
        if at >= len(body):
            return None
        if body[at : at + 1] == b"}":
            return ""
        key = _STRING.match(body, at)
        if key is None:
            return None if body[at : at + 1] == b'"' else ""
        at = _skip_blanks(body, key.end())
        if at >= len(body):
            return None
        if body[at : at + 1] != b":":
            return ""
        at = _skip_blanks(body, at + 1)
        if at >= len(body):
            return None
        lead = body[at : at + 1]
        if key.group(1) == b"model":
            value = _STRING.match(body, at)
            if value is None:
                return None if lead == b'"' else ""
            return _unescape(value.group(1))
        end = _skip_value(body, at)
        if end is None:
            return None
        at = _skip_blanks(body, end)
        if at >= len(body):
            return None
        if body[at : at + 1] == b",":
            at += 1
        elif body[at : at + 1] != b"}":
            return ""


def _skip_blanks(body: bytes, at: int) -> int:
    while at < len(body) and body[at] in _BLANKS:
        at += 1
    return at


def _skip_value(body: bytes, at: int) -> int | None:
    lead = body[at : at + 1]
    if lead == b'"':
        value = _STRING.match(body, at)
        return value.end() if value else None
    if lead not in (b"{", b"["):
        scalar = _SCALAR.match(body, at)
        # A scalar at the very end may go on in the next piece.
        return scalar.end() if scalar and scalar.end() < len(body) else None
    depth = 0
    while at < len(body):
        token = _NESTED.match(body, at)
        if token is None:
            return None
        at = token.end()
        if token.group() in (b"{", b"["):
            depth += 1
        elif token.group() in (b"}", b"]"):
            depth -= 1
            if not depth:
                return at
    return None


def _unescape(raw: bytes) -> str:
    try:
        return str(orjson.loads(b'"%b"' % raw))
    except orjson.JSONDecodeError:
        return ""


def names_this_machine(host: bytes) -> bool:
    """Say whether a host name (lower case, no port) can only mean the machine it is used on."""
    return (
        b"." not in host
        or _ADDRESS.fullmatch(host) is not None
        or host in (b"host.docker.internal", b"host.containers.internal")
    )
