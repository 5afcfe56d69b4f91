"""Which functions of a project run before the first request: at import, in `load()`, in `__init__`.

By name, over all files and through any number of calls: code that runs then and mentions a name, as
a variable, an attribute or a string, reaches every function of that name. That is more than would
really run, never less, but for two ways of running a function without naming it. A base class of a
library may call any method, so they are reached with the class, unless the base is known not to.
And code that looks up computed names may reach everything. What a request makes once and keeps is
taken for what `load()` makes. Pure.
"""

from __future__ import annotations

import builtins
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kserve_local.devloop.decorators import Decorator
from kserve_local.devloop.facts import ClassFacts, Facts, FunctionFacts, facts_of
from kserve_local.devloop.mentions import Mentions

_AT_START = frozenset({
    "load", "start", "start_engine",  # kserve's ModelServer
    "initialize", "setup", "startup", "on_startup", "lifespan", "model_post_init",
})  # fmt: skip
_KNOWN_BASES = ("abc.", "typing.", "typing_extensions.", "collections.abc.", "enum.")
"""Of these, only `_AT_START` and special methods are called before a request is."""


FunctionId = tuple[str, str, int]


@dataclass(slots=True)
class CallGraph:
    """The functions of a project and who mentions whom.

    Args:
        files: Text by path.
    """

    files: Mapping[str, str]
    _facts: dict[str, Facts] = field(init=False)
    _functions: dict[FunctionId, FunctionFacts] = field(init=False, default_factory=dict)
    _by_name: dict[str, list[FunctionId]] = field(init=False, default_factory=dict)
    _classes: dict[str, list[tuple[str, ClassFacts]]] = field(init=False, default_factory=dict)
    _aliases: dict[str, set[str]] = field(init=False, default_factory=dict)
    _places: frozenset[str] = field(init=False)
    _in_file: dict[str, list[FunctionId]] = field(init=False, default_factory=dict)
    _via: dict[FunctionId, tuple[FunctionId | None, str]] = field(init=False, default_factory=dict)
    computed: tuple[str, str, int] | None = field(init=False, default=None)
    """(file, how, line) of code that runs before a request and looks up names that it computes."""

    def __post_init__(self) -> None:
        self._facts = {file: facts_of(text) for file, text in self.files.items()}
        self._places = frozenset(
            part for file in self.files for part in PurePosixPath(file).with_suffix("").parts
        )
        for file, facts in self._facts.items():
            for function in facts.functions:
                id = (file, function.qualname, function.index)
                self._functions[id] = function
                self._in_file.setdefault(file, []).append(id)
                for name in function.names:
                    self._by_name.setdefault(name, []).append(id)
            for one in facts.classes:
                self._classes.setdefault(one.name, []).append((file, one))
            for alias, name in facts.aliases:
                self._aliases.setdefault(alias, set()).add(name)
        self._walk()

    def why_reached(self, file: str, qualname: str, index: int) -> str:
        """Return how a function comes to run before a request, for people; empty: it does not."""
        id = (file, qualname, index)
        if id not in self._via:
            return ""
        through: list[str] = []
        at: FunctionId = id
        while True:
            before, root = self._via[at]
            if before is None:
                break
            through.insert(0, self._functions[before].qualname)
            at = before
        if not through and root == "":
            return f'"{qualname}" runs when the service starts'
        first = root or f"{self._functions[at].name}()"
        if not root:
            through = through[1:]
        shown = f" through {', '.join(through)}" if through else ""
        return f'"{qualname}" is reached by {first}{shown}'

    def why_decorated(self, file: str, qualname: str, index: int) -> str:
        """Return which decorator of a function keeps it from being replaced; empty: none."""
        for decorator in self._functions[(file, qualname, index)].decorators:
            why = self._why_not(file, decorator)
            if why:
                return f'"{qualname}" is decorated with @{decorator.name}, {why}'
        return ""

    def why_odd(self, file: str, owner: str) -> str:
        """Return what is odd about the class around a method, for people; empty: nothing."""
        for one in self._facts[file].classes:
            if one.odd and (owner == one.qualname or owner.startswith(f"{one.qualname}.")):
                return f'class "{one.qualname}" {one.odd}'
        return ""

    def is_open(self, file: str, owner: str) -> bool:
        """Whether a library may call any method of a class, also one it does not have yet."""
        return any(
            one.qualname == owner and self._is_open(file, one) for one in self._facts[file].classes
        )

    def is_abstract(self, name: str) -> bool:
        """Whether a method of this name is abstract in some class of the project."""
        return any(
            decorator.resolved.rpartition(".")[2].startswith("abstract")
            for id in self._by_name.get(name, ())
            for decorator in self._functions[id].decorators
        )

    def mentions(self, name: str) -> bool:
        """Whether code that runs before a request mentions a name."""
        return any(name in m.names for m in self._reached_mentions())

    # -- decorators and classes

    def _why_not(self, file: str, decorator: Decorator) -> str:
        last = decorator.resolved.rpartition(".")[2]
        own = [
            self._functions[id]
            for id in self._by_name.get(last, ())
            if self._functions[id].name == last
        ]
        is_own = bool(own) and self._is_own(file, decorator.name)
        if not is_own or last in self._classes:
            if decorator.is_harmless:
                return ""
            return decorator.why or "which may do more than wrap it"
        for one in own:
            why = one.bad_factory if decorator.is_called else one.bad_wrapper
            # A decorator of a decorator makes another function of it.
            why = why or ("which is decorated itself" if one.decorators else "")
            if why:
                return why
        return ""

    def _is_own(self, file: str, name: str) -> bool:
        """Whether a name leads, or may lead, into the project's files."""
        source = self._facts[file].imports.get(name.partition(".")[0])
        return source is None or self._is_below(source)

    def _is_below(self, source: str) -> bool:
        """Whether an import may find a file of the project."""
        return source.startswith(".") or source.partition(".")[0] in self._places

    def _is_open(self, file: str, one: ClassFacts, seen: frozenset[str] = frozenset()) -> bool:
        for base in one.bases:
            last = base.rpartition(".")[2]
            if _is_known(base) or last in seen:
                continue
            if ("." not in base or self._is_below(base)) and last in self._classes:
                inner = seen | {one.name}
                if any(self._is_open(f, c, inner) for f, c in self._classes[last]):
                    return True
            elif "." in base or not hasattr(builtins, base):
                return True
        return bool(one.odd)

    # -- who is reached

    def _walk(self) -> None:
        waiting: deque[FunctionId] = deque()
        names: set[str] = set()

        def reach(mentions: Mentions, file: str, by: FunctionId | None, root: str) -> None:
            for line, how, source in mentions.computed:
                if self.computed is None and (not source or self._is_below(source)):
                    self.computed = (file, how, line)
            for id in self._named(mentions.names - names):
                if id not in self._via:
                    self._via[id] = (by, root)
                    waiting.append(id)
            names.update(mentions.names)

        for id, function in self._functions.items():
            if runs_at_start(function.name) or self._is_run_by_decorator(id[0], function):
                self._via[id] = (None, "")
                waiting.append(id)
        for file, facts in self._facts.items():
            reach(facts.module, file, None, f"the module level of {file}")
            for function in facts.functions:
                reach(function.kept, file, None, f"what {function.qualname} makes once and keeps")
        while waiting:
            id = waiting.popleft()
            reach(self._functions[id].mentions, id[0], id, "")

    def _is_run_by_decorator(self, file: str, function: FunctionFacts) -> bool:
        return any(self._why_not(file, d) for d in function.decorators)

    def _named(self, names: Iterable[str]) -> Iterator[FunctionId]:
        waiting = list(names)
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            waiting += self._aliases.get(name, ())
            yield from self._by_name.get(name, ())
            for file, one in self._classes.get(name, ()):
                if self._is_open(file, one):
                    inner = f"{one.qualname}."
                    yield from (id for id in self._in_file.get(file, ()) if id[1].startswith(inner))

    def _reached_mentions(self) -> Iterator[Mentions]:
        yield from (facts.module for facts in self._facts.values())
        yield from (f.kept for facts in self._facts.values() for f in facts.functions)
        yield from (self._functions[id].mentions for id in self._via)


def _is_known(base: str) -> bool:
    """Whether a base class of a library calls nothing of its subclass before a request."""
    is_model = base.startswith("kserve.") and base.endswith("Model")
    return is_model or base.startswith(_KNOWN_BASES) or base == "pydantic.BaseModel"


def runs_at_start(name: str) -> bool:
    """Whether a function of this name is called by the interpreter or a server before requests."""
    is_special = len(name) > 2 and name.startswith("_") and name.endswith("_")
    return is_special or name in _AT_START


def stem_of(file: str) -> str:
    """Return the name that a file is imported by: its own, or its folder's."""
    path = PurePosixPath(file)
    return path.parent.name if path.stem in ("__init__", "__main__") else path.stem
