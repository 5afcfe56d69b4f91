"""A command's connection to the running project."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

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
    import difflib

    words = [w for k in scheme.ALL for w in (k.plural, k.singular, *k.short_names)]
    near = difflib.get_close_matches(wanted, words, n=1)
    guess = f'; did you mean "{near[0]}"?' if near else ""
    raise NotFound(f'the server doesn\'t have a resource type "{word}"{guess}')
