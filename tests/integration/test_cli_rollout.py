"""`rollout` on a running project: the YAML, the running object and the gateway agree after each.

One project with two services: `who` comes from a file with comments, `api` from the API alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from kserve_local.api import scheme
from tests.integration.project import project, wait_until
from tests.integration.test_fidelity import SPEC, WHO, Cluster, conditions, is_loaded

FILE = """\
# Ours; ask Ana.
apiVersion: v1
kind: ConfigMap
metadata: {name: first}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: who   # answers who it is
spec:
  predictor:
    # why there is one container only
    containers:
      - name: kserve-container
        image: 'who:dev'
        args: ["one"]
"""
TWO = FILE.replace('["one"]', '["two"]')
CANARY = "    canaryTrafficPercent: {}\n    # why there"


def with_canary(text: str, percent: int) -> str:
    return text.replace("    # why there", CANARY.format(percent))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("rollout") / "project"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "who.py").write_text(WHO)
    config = {
        "resources": ["who.yaml"],
        # What is saved is not what is applied, in some of the tests.
        "watch": {"enabled": False},
        "images": {"who:dev": {"context": "./code", "command": ["python", "who.py"]}},
    }
    (folder / "kserve-local.yaml").write_text(json.dumps(config))
    (folder / "who.yaml").write_text(FILE)
    with project(folder) as p:
        p.up()
        yield Cluster(p)


@pytest.fixture
def cluster(world: Cluster) -> Cluster:
    """The project with `who` made anew from its file."""
    world.delete("who")
    (world.project.folder / "who.yaml").write_text(FILE)
    world.project.run("apply", "-f", "who.yaml")
    world.until(is_loaded)
    return world


def text(cluster: Cluster) -> str:
    return (cluster.project.folder / "who.yaml").read_text()


def save(cluster: Cluster, content: str) -> None:
    (cluster.project.folder / "who.yaml").write_text(content)


def rollout(cluster: Cluster, *args: str, check: int = 0) -> tuple[str, str]:
    done = cluster.project.run("rollout", *args, check=check)
    return done.stdout, done.stderr


def answers(cluster: Cluster, host: str = "who.default") -> set[str]:
    return set(Counter(cluster.ask(host) for _ in range(20)))


def test_a_canary_from_the_first_percent_to_its_rollback(cluster: Cluster) -> None:
    """Edit the model, set-canary, promote, undo; every step in the file, nothing else in it."""
    save(cluster, TWO)
    out, said = rollout(cluster, "set-canary", "who", "10")
    assert text(cluster) == with_canary(TWO, 10)
    assert "who.yaml:12  canaryTrafficPercent: 10" in said
    assert "applied with it: spec.predictor.containers[0].args[0]" in said
    cluster.until(lambda o: is_loaded(o) and cluster.traffic().get("prev") == (90, "00001"))
    assert cluster.traffic()["latest revision"] == (10, "00002")
    shown = cluster.project.json("rollout", "status", "who")["components"][0]
    assert (shown["phase"], shown["canaryTrafficPercent"]) == ("canary", 10)
    assert [(r["percent"], r["tags"]) for r in shown["revisions"]] == [(10, []), (90, ["prev"])]
    assert shown["next"][0] == "kserve-local rollout set-canary who 50"

    out, _ = rollout(cluster, "set-canary", "who", "50")
    assert out == "who: 50 % of requests go to 00002, the canary; 50 % stay with 00001\n"
    assert text(cluster) == with_canary(TWO, 50)

    out, _ = rollout(cluster, "promote", "who")
    assert out == "who: all traffic goes to 00002\n"
    assert text(cluster) == TWO
    assert cluster.traffic() == {"latest revision": (100, "00002")}
    wait_until(lambda: answers(cluster) == {"two"})

    out, said = rollout(cluster, "undo", "who")
    assert "in two passes" in said
    assert text(cluster) == with_canary(TWO, 0)
    assert cluster.traffic() == {"latest revision": (0, "00002"), "prev": (100, "00001")}
    wait_until(lambda: answers(cluster) == {"one"})
    assert "nothing to undo" in rollout(cluster, "undo", "who", check=2)[1]

    # `up` and `apply` of the edited file find nothing to do.
    applied = cluster.project.run("apply", "-f", "who.yaml").stdout
    assert "inferenceservice.serving.kserve.io/who unchanged" in applied

    table, _ = rollout(cluster, "history", "who")
    lines = table.splitlines()
    assert lines[1].split()[0] == "who-predictor-00002"
    assert "who.yaml" in lines[1]
    assert lines[1].endswith("args one → two")
    rollout(cluster, "promote", "who")
    assert text(cluster) == TWO


def test_undo_before_promotion(cluster: Cluster) -> None:
    save(cluster, TWO)
    rollout(cluster, "set-canary", "who", "30")
    cluster.until(lambda o: cluster.traffic()["latest revision"] == (30, "00002"))
    out, _ = rollout(cluster, "undo", "who")
    assert out.startswith("who: 00002 gets no requests (0 %) and keeps its replicas")
    assert cluster.traffic() == {"latest revision": (0, "00002"), "prev": (100, "00001")}
    # Named by itself it still answers: its replicas are there.
    done = cluster.project.run("predict", "who", "{}", "--revision", "2")
    assert json.loads(done.stdout)["predictions"][0] == "two"
    done = cluster.project.run("predict", "who", "{}", "--revision", "who-predictor-00001")
    assert json.loads(done.stdout)["predictions"][0] == "one"


def test_what_is_saved_but_not_applied_is_not_promoted_by_the_way(cluster: Cluster) -> None:
    save(cluster, with_canary(TWO, 10))
    cluster.project.run("apply", "-f", "who.yaml")
    cluster.until(lambda o: cluster.traffic()["latest revision"] == (10, "00002"))
    three = with_canary(TWO, 10).replace('"two"', '"three"')
    save(cluster, three)
    _, said = rollout(cluster, "promote", "who", check=11)
    assert "who.yaml has changes that were not applied" in said
    assert "spec.predictor.containers[0].args[0]" in said
    assert text(cluster) == three
    assert cluster.traffic()["latest revision"] == (10, "00002")
    _, said = rollout(cluster, "promote", "who", "--no-edit")
    assert "who.yaml says 10; the next up or apply may bring that back" in said
    assert text(cluster) == three
    assert cluster.traffic() == {"latest revision": (100, "00002")}


def test_a_refusal_leaves_the_file_alone(cluster: Cluster) -> None:
    broken = TWO.replace('args: ["two"]', 'args: ["two"]\n  transformer: {}')
    save(cluster, broken)
    _, said = rollout(cluster, "set-canary", "who", "10", check=3)
    assert "denied the request" in said
    assert text(cluster) == broken


def test_a_service_that_no_file_holds(world: Cluster) -> None:
    world.apply({**SPEC, "metadata": {"name": "api"}})
    world.until(is_loaded, "api")
    two = [{"name": "kserve-container", "image": "who:dev", "args": ["two"]}]
    world.patch({"containers": two, "canaryTrafficPercent": 10}, "api")
    world.until(lambda o: is_loaded(o) and "00002" in str(world.traffic("api")), "api")
    before = text(world)
    _, said = rollout(world, "set-canary", "api", "20")
    assert "no file of the project holds it" in said
    assert world.traffic("api")["latest revision"] == (20, "00002")
    rollout(world, "promote", "api")
    isvc = world.get(scheme.INFERENCE_SERVICE, "api")
    assert "canaryTrafficPercent" not in isvc["spec"]["predictor"]
    assert text(world) == before
    # One that is only kept has no replicas to ask.
    kept = world.project.run("predict", "api", "{}", "--revision", "1", check=4)
    assert 'revision "1" of api is kept and has no traffic' in kept.stderr
    world.delete("api")


def test_a_canary_that_does_not_come_up(cluster: Cluster) -> None:
    """It gets nothing, cannot be promoted by mistake, and undo keeps it from ever getting any."""
    save(cluster, with_canary(FILE, 20).replace("who:dev", "nobody/has:this"))
    cluster.project.run("apply", "-f", "who.yaml")
    cluster.until(lambda o: conditions(o).get("PredictorReady", ("",))[0] == "False")
    out, said = rollout(cluster, "status", "who")
    assert "00002 does not become ready: ContainerMissing: " in out
    assert "00001 keeps all traffic" in out
    assert "kserve-local logs who --revision 00002" in said
    _, said = rollout(cluster, "promote", "who", check=4)
    assert "does not become ready" in said
    assert answers(cluster) == {"one"}
    _, said = rollout(cluster, "undo", "who")
    assert "00002 was never ready" in said


def test_a_transformer_has_a_canary_of_its_own(world: Cluster) -> None:
    both = FILE.replace("name: who ", "name: both ").replace("first", "second")
    both += "  transformer:\n    containers:\n      - {name: t, image: 'who:dev', args: [one]}\n"
    (world.project.folder / "both.yaml").write_text(both)
    world.project.run("apply", "-f", "both.yaml")
    world.project.run("wait", "both")
    edited = both.replace("[one]", "[two]")
    (world.project.folder / "both.yaml").write_text(edited)
    rollout(world, "set-canary", "both", "30", "--component", "transformer")
    text = (world.project.folder / "both.yaml").read_text()
    assert text == edited.replace(
        "  transformer:\n", "  transformer:\n    canaryTrafficPercent: 30\n"
    )
    wait_until(lambda: "30 % of requests go to 00002" in rollout(world, "status", "both")[0])
    shown = world.project.json("rollout", "status", "both")["components"]
    assert [(c["component"], c["phase"]) for c in shown] == [
        ("predictor", "complete"),
        ("transformer", "canary"),
    ]
    _, said = rollout(world, "promote", "both", check=2)
    assert "nothing to promote" in said
    out, _ = rollout(world, "promote", "both", "--component", "transformer")
    assert out == "both: all traffic goes to 00002\n"
    assert (world.project.folder / "both.yaml").read_text() == edited
    world.delete("both")


def test_what_rollout_is_not_for(cluster: Cluster) -> None:
    _, said = rollout(cluster, "status", "wh", check=11)
    assert 'did you mean "who"?' in said
    _, said = rollout(cluster, "promote", "who", "--component", "transformer", check=11)
    assert "has no transformer; it has: predictor" in said
    _, said = rollout(cluster, "promote", "who", check=2)
    assert "nothing to promote" in said
    standard = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    cluster.apply({**SPEC, "metadata": {"name": "std", "annotations": standard}})
    for args in (("status",), ("set-canary",)):
        more = ("10",) if args == ("set-canary",) else ()
        _, said = rollout(cluster, *args, "std", *more, check=2)
        assert "runs in Standard mode" in said
        assert "spec.canary" in said
    cluster.delete("std")
    cluster.annotate("disable-auto-update", "true")
    _, said = rollout(cluster, "set-canary", "who", "10", check=4)
    assert "disable-auto-update" in said
    cluster.annotate("disable-auto-update", None)
    cluster.annotate("stop", "true")
    _, said = rollout(cluster, "status", "who", check=4)
    assert "is stopped" in said
    cluster.annotate("stop", None)


def test_the_first_rollout_has_no_canary(world: Cluster) -> None:
    world.apply(
        {
            **SPEC,
            "metadata": {"name": "first"},
            "spec": {
                "predictor": {
                    "containers": [{"name": "kserve-container", "image": "nobody/has:this"}]
                }
            },
        }
    )
    wait_until(lambda: "first" in world.project.run("rollout", "status", "first").stdout)
    _, said = rollout(world, "set-canary", "first", "10", check=4)
    assert "KServe ignores canaryTrafficPercent" in said
    world.delete("first")


def test_a_gradual_rollout_is_followed_until_it_has_begun(cluster: Cluster) -> None:
    duration = "metadata:\n  annotations: {serving.knative.dev/rollout-duration: 10m}\n  name"
    save(cluster, FILE.replace("metadata:\n  name", duration))
    cluster.project.run("apply", "-f", "who.yaml")
    cluster.until(is_loaded)
    edited = TWO.replace("metadata:\n  name", duration)
    save(cluster, with_canary(edited, 100))
    cluster.project.run("apply", "-f", "who.yaml")
    cluster.until(lambda o: "RolloutInProgress" in str(o["status"]))
    out, _ = rollout(cluster, "status", "who")
    assert "a gradual rollout over 10m moves traffic to 00002: 1 % 00002, 99 % 00001" in out
    assert cluster.project.service("who")["reason"] == "RolloutInProgress"
    # Without the annotation it moves at once.
    save(cluster, with_canary(TWO, 100))
    cluster.project.run("apply", "-f", "who.yaml")
    cluster.until(
        lambda o: is_loaded(o) and cluster.traffic() == {"latest revision": (100, "00002")}
    )


def test_watch_prints_each_change_once(cluster: Cluster) -> None:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "kserve_local.cli.main", "rollout", "status", "who", "-w", "--json"],
        cwd=cluster.project.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watcher.stdout is not None
        first = json.loads(watcher.stdout.readline())["data"]["components"][0]
        assert first["phase"] == "complete"
        save(cluster, TWO)
        rollout(cluster, "set-canary", "who", "10")
        phases = []
        while "canary" not in phases:
            entry = json.loads(watcher.stdout.readline())["data"]["components"][0]
            phases.append(entry["phase"])
    finally:
        watcher.kill()
        watcher.wait()
        if watcher.stdout is not None:
            watcher.stdout.close()
