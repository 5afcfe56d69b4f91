"""`kserve-local images`: what runs in Docker and is built on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import UsageError

if TYPE_CHECKING:
    from kserve_local.backends.docker_engine import Engine
    from kserve_local.backends.docker_images import Recipe
    from kserve_local.settings import Settings

T = TypeVar("T")


@click.group("images")
def command() -> None:
    """Images of our model servers and of the project's own source, for Docker.

    They are built when a Pod first needs them; this builds them beforehand, shows and removes them.
    """


def _with_engine(work: Callable[[Engine], Awaitable[T]]) -> T:
    """Run `work` with an engine.

    Raises:
        Missing: None answers.
    """
    import asyncio

    from kserve_local.backends.docker_engine import Engine

    async def run() -> T:
        engine = await Engine.connect()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def _recipes(settings: Settings) -> dict[str, Callable[[], Recipe]]:
    """Return how everything that can be built here is, by its name."""
    from functools import partial

    from kserve_local.backends import docker_images
    from kserve_local.backends.environments import EXTRAS
    from kserve_local.controllers.standins import build_of

    found: dict[str, Callable[[], Recipe]] = {
        server: partial(docker_images.runtime, server, os.environ) for server in EXTRAS
    }
    for image, source in settings.images.items():
        found[image] = partial(docker_images.source, image, build_of(source), os.environ)
    return found


@command.command("build")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "every", is_flag=True, help="Everything that can be built here.")
@click.option("--force", is_flag=True, help="Build also what is there.")
@common
def build(flags: Common, names: tuple[str, ...], every: bool, force: bool) -> int:
    """Build images: a model server (sklearnserver) or an image of kserve-local.yaml.

    Without a NAME: the images of kserve-local.yaml.
    """
    from kserve_local.backends import docker_builds

    settings, out = flags.settings(), flags.output("images build")
    recipes = _recipes(settings)
    unknown = [name for name in names if name not in recipes]
    if unknown:
        raise UsageError(
            f'nothing is known of an image "{unknown[0]}"', hint=f"known: {', '.join(recipes)}"
        )
    wanted = list(names) or [n for n in recipes if every or n in settings.images]
    if not wanted:
        raise UsageError(
            "kserve-local.yaml maps no image; name a model server, or use --all",
            hint=f"kserve-local images build {next(iter(recipes))}",
        )

    async def work(engine: Engine) -> list[dict[str, object]]:
        done: list[dict[str, object]] = []
        for name in wanted:
            recipe = recipes[name]()
            begun = time.monotonic()
            there = await docker_builds.has_image(engine, recipe.image)
            if force or not there:
                async for line in docker_builds.build(engine, recipe, os.environ):
                    if step := docker_builds.step_of(line):
                        out.say(f"  {name}: {step}")
            took = time.monotonic() - begun
            size = await docker_builds.size_of(engine, recipe.image)
            built = force or not there
            out.step("✓", name, f"{recipe.image}  {_megabytes(size)}", took if built else None)
            done.append({"name": name, "image": recipe.image, "size": size, "built": built})
        return done

    images = _with_engine(work)
    if flags.as_json:
        out.envelope({"images": images})
    return 0


@command.command("list")
@common
def list_(flags: Common) -> int:
    """Show the images that were built here, and which of them are up to date."""
    from kserve_local.backends.docker_inventory import inventory
    from kserve_local.cli.output import table

    settings, out = flags.settings(), flags.output("images list")
    current = _current(settings)
    images = _with_engine(inventory)
    if flags.as_json:
        data = [
            {"name": i.label, "image": i.name, "id": i.id, "size": i.size, "created": i.created,
             "usedBy": i.used_by, "current": i.name in current}
            for i in images
        ]  # fmt: skip
        out.envelope({"images": data})
        return 0
    rows = [
        (
            i.label,
            i.name or i.id.removeprefix("sha256:")[:12],
            _megabytes(i.size),
            "yes" if i.name in current else "no",
            str(i.used_by),
        )
        for i in images
    ]
    if rows:
        out.data(table(rows, ("NAME", "IMAGE", "SIZE", "CURRENT", "CONTAINERS")))
    else:
        out.say("no image was built here yet; kserve-local images build NAME")
    return 0


@command.command("prune")
@click.option("--all", "every", is_flag=True, help="Also images that are up to date.")
@common
def prune(flags: Common, every: bool) -> int:
    """Remove images that were built here and that no container has.

    Those stay that this project would build as they are now, and the model servers' of this
    version. The images of all other projects on this engine go: they are built again when needed.
    """
    from kserve_local.backends import docker_inventory

    settings, out = flags.settings(), flags.output("images prune")
    keep = set() if every else _current(settings)

    async def work(engine: Engine) -> tuple[list[docker_inventory.Found], int]:
        return await docker_inventory.prune(engine, keep=keep)

    removed, freed = _with_engine(work)
    if flags.as_json:
        names = [{"image": i.name or i.id, "size": i.size} for i in removed]
        out.envelope({"removed": names, "freedBytes": freed})
        return 0
    for image in removed:
        out.data(f"removed {image.name or image.id}")
    out.say(f"{len(removed)} removed, up to {_megabytes(freed)} free (layers may be shared)")
    return 0


def _current(settings: Settings) -> set[str]:
    """Return the images that would be built now."""
    return {recipe().image for recipe in _recipes(settings).values()}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
