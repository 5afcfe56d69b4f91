"""A change of code in a `kserve.Model` that serves: workers, requests under way, memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kserve_local.backends import processes
from kserve_local.interfaces.backend import ContainerSpec, Probe, ReplicaStatus
from kserve_local.interfaces.code import CodeChange
from tests.integration.process_world import Project, next_event, post

MODEL = """
import argparse
import asyncio
import gc
import os
import types

import kserve
import numpy
from weights import scale


class Scaler(kserve.Model):
    loads = 0

    def load(self):
        type(self).loads += 1
        self.weights = numpy.full(1000, 2.0)
        self.ready = True

    async def preprocess(self, payload, headers=None):
        return [float(x) for x in payload["instances"]]

    async def predict(self, payload, headers=None):
        while os.path.exists("wait"):
            open("waits", "w").close()
            await asyncio.sleep(0.01)
        return {"predictions": [scale(x, self.weights) for x in payload], "version": 1000}

    def postprocess(self, result, headers=None, response_headers=None):
        state = {"pid": os.getpid(), "weights": id(self.weights), "loads": type(self).loads}
        return {**result, **state, "objects": objects()}


def objects():
    gc.collect()
    found = gc.get_objects()
    return [sum(type(o) is types.FunctionType for o in found), len(found)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    model = Scaler(parser.parse_known_args()[0].model_name)
    model.load()
    kserve.ModelServer().start([model])
"""
WEIGHTS = "def scale(x, weights):\n    return x * float(weights[0])\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "p")
    project.write("model.py", MODEL)
    project.write("weights.py", WEIGHTS)
    return project


def container(project: Project, how: str, *more: str) -> ContainerSpec:
    return project.container(
        "model.py",
        "--model_name=m",
        "--enable_grpc=false",
        *more,
        preload=("kserve",) if how == "zygote" else (),
        readiness=Probe("http", port=8080, path="/v2/health/ready", timeout=5, period=0.2),
    )


def save(project: Project, id: str, **edits: tuple[str, str]) -> CodeChange:
    before, after = {}, {}
    for name, edit in edits.items():
        text = (project.code / f"{name}.py").read_text()
        assert edit[0] in text
        before[f"{name}.py"], after[f"{name}.py"] = text, text.replace(*edit)
        project.write(f"{name}.py", after[f"{name}.py"])
    return CodeChange(id, before, after)


async def predict(status: ReplicaStatus) -> dict[str, Any]:
    answer = await post(status, "/v1/models/m:predict", {"instances": [1]})
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize("how", ["zygote", "process"])
async def test_a_request_under_way_ends_old_and_the_next_is_new(project: Project, how: str):
    async with project.backend() as backend:
        await backend.start(project.replica(container(project, how)))
        status = (await next_event(backend, "ready", "exited")).status
        assert status.containers[0].started_how == how, status.containers[0].note
        first = await predict(status)
        assert (first["predictions"], first["version"], first["loads"]) == ([2.0], 1000, 1)
        (project.code / "wait").touch()
        under_way = asyncio.create_task(predict(status))
        await until_there(project.code / "waits")
        change = save(project, "c", model=("1000}", "1001}"))
        verdict = await backend.commit_code(status.id, "kserve-container", change)
        assert (verdict.refused, verdict.functions) == ("", 1)
        (project.code / "wait").unlink()
        assert (await under_way)["version"] == 1000
        # Two files at once; the weights were loaded once and are where they were.
        edits = {"model": ("1001}", "1002}"), "weights": ("x *", "10 * x *")}
        verdict = await backend.commit_code(
            status.id, "kserve-container", save(project, "d", **edits)
        )
        assert (verdict.refused, verdict.functions) == ("", 2)
        last = await predict(status)
        assert (last["predictions"], last["version"]) == ([20.0], 1002)
        assert [last[k] for k in ("pid", "weights", "loads")] == [
            first[k] for k in ("pid", "weights", "loads")
        ]


async def until_there(path: Path) -> None:
    async with asyncio.timeout(30):
        # What writes it is another process.
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - see above
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["zygote", "process"])
async def test_all_workers_of_a_model_server_have_the_change(project: Project, how: str):
    async with project.backend() as backend:
        await backend.start(project.replica(container(project, how, "--workers=2")))
        status = (await next_event(backend, "ready", "exited")).status
        async with asyncio.timeout(60):
            pids: set[int] = set()
            while len(pids) < 2:
                pids.add((await predict(status))["pid"])
        pid = status.containers[0].pid
        assert pid is not None
        assert pids <= set(processes.descendants(pid)[1:])
        edits = {"model": ("1000}", "1001}"), "weights": ("x *", "10 * x *")}
        change = save(project, "c", **edits)
        checked = await backend.check_code(status.id, "kserve-container", change)
        assert checked.refused == ""
        verdict = await backend.commit_code(status.id, "kserve-container", change)
        assert verdict == checked
        assert verdict.processes >= 3
        answers = [await predict(status) for _ in range(20)]
        assert {(a["version"], *a["predictions"]) for a in answers} == {(1001, 20.0)}


async def test_two_hundred_changes_leave_nothing_behind(project: Project):
    async with project.backend() as backend:
        await backend.start(project.replica(container(project, "process")))
        status = (await next_event(backend, "ready", "exited")).status

        async def change(number: int) -> None:
            edit = (f"{number}}}", f"{number + 1}}}")
            saved = save(project, str(number), model=edit)
            for ask in (backend.check_code, backend.commit_code):
                verdict = await ask(status.id, "kserve-container", saved)
                assert (verdict.refused, verdict.functions) == ("", 1)

        for number in range(1000, 1010):
            await change(number)
        first = await predict(status)
        for number in range(1010, 1210):
            await change(number)
        last = await predict(status)
        assert last["version"] == 1210
        assert last["objects"][0] == first["objects"][0]
        assert abs(last["objects"][1] - first["objects"][1]) < 300
        assert last["weights"] == first["weights"]
