"""Forks writers of a store, one per line on stdin, for the kill tests.

Imports are done once, so that a cycle of open, write, die takes milliseconds. A writer prints its
pid and then one line per acknowledged write, `NAME STEP RESOURCE_VERSION`, until somebody kills it.
Each name is written by one task in a fixed order of steps: every fifth removes it, the others leave
the step's number in it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from kserve_local.api.meta import Key, Object
from kserve_local.store.store import Store, open_store

PAYLOAD = "x" * 700  # several pages per commit, so that checkpoints happen, too


def state_after(step: int) -> str | None:
    """Return the value that a name holds after a step, None where it is gone."""
    return None if step % 5 == 0 else str(step)


def obj(name: str, value: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "labels": {"payload": name}},
        "data": {"step": value, "payload": PAYLOAD},
    }


async def _one_name(store: Store, name: str, step: int) -> None:
    key = Key("configmaps", "default", name)
    while True:
        step += 1
        value, before = state_after(step), store.find(key)
        if value is None:
            done = await store.delete(key) if before is not None else None
        elif before is None:
            done = await store.create(obj(name, value))
        else:
            done = await store.update(obj(name, value))
        version = store.resource_version if done is None else done["metadata"]["resourceVersion"]
        os.write(1, f"{name} {step} {version}\n".encode())


async def _write(path: Path, steps: list[int]) -> None:
    async with open_store(path, collect=False) as store, asyncio.TaskGroup() as tasks:
        for index, step in enumerate(steps):
            tasks.create_task(_one_name(store, f"n{index}", step))


def main() -> None:
    """Serve one writer after the other; a line is the path and each name's last step."""
    for line in sys.stdin:
        path, *steps = line.split()
        pid = os.fork()
        if pid == 0:
            os.write(1, f"pid {os.getpid()}\n".encode())
            try:
                asyncio.run(_write(Path(path), [int(step) for step in steps]))
            except BaseException as error:
                os.write(1, f"failed {type(error).__name__} {error}\n".encode())
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        os.write(1, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
