"""A command's connection to the running project."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from kserve_local.api.meta import Object
from kserve_local.client.client import Client
from kserve_local.client.project import need_running
from kserve_local.errors import NotFound
from kserve_local.settings import Settings

T = TypeVar("T")


@asynccontextmanager
async def connected(
    settings: Settings, on_warning: Callable[[str], None] | None = None
) -> AsyncIterator[Client]:
    """Give a client of the project's API.

    Raises:
        ServiceUnavailable: The project does not run.
    """
    need_running(settings)
    async with Client.from_kubeconfig(settings.kubeconfig, on_warning=on_warning) as client:
        yield client


def run(
    settings: Settings,
    work: Callable[[Client], Awaitable[T]],
    on_warning: Callable[[str], None] | None = None,
) -> T:
    """Do `work` with a client and return what it returns."""

    async def inside() -> T:
        async with connected(settings, on_warning) as client:
            return await work(client)

    return asyncio.run(inside())


def is_revision(given: str, name: object) -> bool:
    """Whether `given`, a revision's name or number, is the revision called `name`."""
    own = str(name or "")
    return own == given or (given.isdecimal() and own.rpartition("-")[2] == given.zfill(5))


def resource_named(text: str) -> tuple[str, str]:
    """Return (resource type id, object name or "") of `isvc`, `pods`, `isvc/iris`, `ksvc`.

    Takes plural, singular, kind and short names, with or without the group.

    Raises:
        NotFound: No such type, in kubectl's words, with a guess.
    """
    from kserve_local.api import scheme

    word, _, name = text.partition("/")
    wanted = word.lower()
    for kind in scheme.ALL:
        known = {kind.plural, kind.singular, kind.kind.lower(), *kind.short_names, kind.id}
        if wanted in known:
            return kind.id, name
    words = [w for k in scheme.ALL for w in (k.plural, k.singular, *k.short_names)]
    found = near(wanted, words)
    guess = f'; did you mean "{found}"?' if found else ""
    raise NotFound(f'the server doesn\'t have a resource type "{word}"{guess}')


def near(word: str, known: Iterable[str]) -> str:
    """Return the known word that was probably meant, empty if none is near."""
    import difflib

    return next(iter(difflib.get_close_matches(word, sorted(known), n=1)), "")


def service_name(text: str) -> str:
    """Return `iris` of `iris`, `isvc/iris` or `ig/iris`.

    Raises:
        NotFound: Another type is named.
    """
    if "/" not in text:
        return text
    kind, name = resource_named(text)
    if kind not in ("inferenceservices.serving.kserve.io", "inferencegraphs.serving.kserve.io"):
        raise NotFound(f'"{text}" is no InferenceService or InferenceGraph')
    return name


async def list_services(client: Client, *, namespace: str | None = None) -> list[Object]:
    """Return what can be called and waited for: InferenceServices, then InferenceGraphs."""
    from kserve_local.api import scheme

    return [
        *await client.list(scheme.INFERENCE_SERVICE, namespace=namespace),
        *await client.list(scheme.INFERENCE_GRAPH, namespace=namespace),
    ]
