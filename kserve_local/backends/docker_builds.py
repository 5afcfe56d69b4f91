"""Builds an image: with the engine's classic builder, or through the `docker` command with BuildKit
where a Dockerfile needs that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Mapping

from kserve_local.backends.docker_engine import Engine
from kserve_local.backends.docker_images import Recipe
from kserve_local.errors import Missing, NotFound

_TAIL = 12
_STEPS = ("Step ", "#", "Collecting ", "Downloading ", "Installing ", "Get:")
_STEP_LENGTH = 60


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
    context = await asyncio.to_thread(recipe.archive)
    if recipe.needs_buildkit:
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
    recipe: Recipe, context: bytes, environ: Mapping[str, str]
) -> AsyncGenerator[str, None]:
    """Build with `docker buildx`, whose session no SDK speaks."""
    hint = (
        "install Docker's buildx plugin, or write the Dockerfile without RUN --mount and "
        "here-documents"
    )
    try:
        asked = await asyncio.create_subprocess_exec(
            "docker", "buildx", "version", stdout=-3, stderr=-3, env=dict(environ)
        )
        has_buildx = await asked.wait() == 0
    except FileNotFoundError:
        has_buildx = False
    if not has_buildx:
        raise Missing(
            f"the Dockerfile of {recipe.label} needs BuildKit, and `docker buildx` is not there",
            hint=hint,
        )
    words = ["docker", "buildx", "build", "--load", "--progress", "plain", "--tag", recipe.image]
    for name, value in recipe.labels.items():
        words += ["--label", f"{name}={value}"]
    for name, value in recipe.arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    with tempfile.TemporaryFile() as file:
        file.write(context)
        file.seek(0)
        process = await asyncio.create_subprocess_exec(
            *words, "-", stdin=file, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, env=dict(environ), start_new_session=True,
        )  # fmt: skip
    last: deque[str] = deque(maxlen=_TAIL)
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
        raise Missing(f"cannot build image {recipe.image}:\n{told}")
