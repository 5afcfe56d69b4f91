"""Builds an image: over the engine's socket, or with BuildKit through the `docker` command where a
Dockerfile needs that. Podman's builder knows all of it and needs no command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import IO

from kserve_local.backends.docker_engine import BUILD_TAIL, DEFAULT_HOST, Engine, failed_build
from kserve_local.backends.docker_images import Recipe
from kserve_local.errors import Missing, NotFound

_BUILDKITS = re.compile(r"^(?:#\d+ )?(?:\d+\.\d+ )?")
_STEPS = ("Step ", "#", "Collecting ", "Downloading ", "Installing ", "Get:")
_STEP_LENGTH = 60
_NO_BUILDX = "buildx component is missing"


def step_of(line: str) -> str:
    """Return a builder's line if it tells how far it is, shortened; else empty."""
    if not line.startswith(_STEPS):
        return ""
    return line if len(line) <= _STEP_LENGTH else f"{line[: _STEP_LENGTH - 1]}…"


async def has_image(engine: Engine, image: str) -> bool:
    """Whether the engine has an image."""
    try:
        await engine.call("inspect_image", image)
    except NotFound:
        return False
    return True


async def size_of(engine: Engine, image: str) -> int:
    """Return an image's bytes.

    Raises:
        NotFound: It is not there.
    """
    found = await engine.call("inspect_image", image)
    return int(found.get("Size") or 0)


async def build(
    engine: Engine, recipe: Recipe, environ: Mapping[str, str]
) -> AsyncGenerator[str, None]:
    """Build an image; yield what the builder prints.

    Raises:
        Missing: It failed; ends with the builder's last lines.
    """
    # Not in memory: a context may hold a model.
    with tempfile.TemporaryFile(prefix="kserve-local-build-") as context:
        await asyncio.to_thread(recipe.write, context)
        if recipe.needs_buildkit and not engine.is_podman:
            lines = _with_buildkit(recipe, context, environ)
        else:
            lines = engine.build(
                context,
                recipe.image,
                dockerfile=recipe.dockerfile,
                labels=recipe.labels,
                arguments=recipe.arguments,
            )
        async with contextlib.aclosing(lines) as news:
            async for line in news:
                yield line


async def _with_buildkit(
    recipe: Recipe, context: IO[bytes], environ: Mapping[str, str]
) -> AsyncGenerator[str, None]:
    """Build with the `docker` command, whose session with BuildKit no SDK speaks.

    Up to version 22 the command has BuildKit's client in itself, later ones hand over to the buildx
    plugin: one way to ask both.
    """
    # The command would take its current context where none is named.
    asked = {"DOCKER_HOST": DEFAULT_HOST} | dict(environ) | {"DOCKER_BUILDKIT": "1"}
    words = ["docker", "build", "--progress", "plain", "--tag", recipe.image]
    for name, value in recipe.labels.items():
        words += ["--label", f"{name}={value}"]
    for name, value in recipe.arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    try:
        process = await asyncio.create_subprocess_exec(
            *words, "-", stdin=context, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, env=asked, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise _no_buildkit(recipe, "there is no docker command") from None
    last: deque[str] = deque(maxlen=BUILD_TAIL)
    try:
        assert process.stdout is not None  # a pipe was asked for
        async for line in process.stdout:
            if text := line.decode(errors="replace").strip():
                last.append(text)
                yield text
        code = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
    if code != 0:
        told = "\n".join(last)
        if _NO_BUILDX in told:
            raise _no_buildkit(recipe, "the docker command has no buildx plugin")
        *output, error = last or [f"docker build ended with exit code {code}"]
        raise Missing(failed_build(recipe.image, "", map(_plain, output), error))


def _plain(line: str) -> str:
    """Return what a step printed, without BuildKit's number of the step and the seconds."""
    return _BUILDKITS.sub("", line)


def _no_buildkit(recipe: Recipe, why: str) -> Missing:
    return Missing(
        f"the Dockerfile of {recipe.label} needs BuildKit, and {why}",
        hint="install Docker's command with its buildx plugin (Debian 12's docker.io needs no "
        "plugin), or write the Dockerfile without RUN --mount and here-documents",
    )
