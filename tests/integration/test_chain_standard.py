"""Standard mode on a real store with a node agent that only pretends to run things."""

from __future__ import annotations

from pathlib import Path

from kserve_local.api.meta import Key
from tests.fakes.node_agent import node_agent
from tests.integration.standard_world import standard
from tests.integration.test_chain import ISVC, is_loaded, without_times, world

DEPLOYMENTS = "deployments.apps"


async def test_a_fresh_service_reads_as_on_a_cluster(tmp_path: Path) -> None:
    """Worked example E of control-plane.md 5.9."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(standard())
        isvc = await w.until(ISVC, "sklearn-iris", is_loaded)
        deployment = w.store.get(Key(DEPLOYMENTS, "default", "sklearn-iris-predictor"))
        message = next(
            c["message"] for c in deployment["status"]["conditions"] if c["type"] == "Progressing"
        )
        assert without_times(isvc["status"]) == {
            "address": {"url": "http://sklearn-iris-predictor.default.svc.cluster.local"},
            "clusterServingRuntimeName": "kserve-sklearnserver",
            "components": {
                "predictor": {"url": "http://sklearn-iris-predictor-default.example.com"}
            },
            "conditions": [
                {"type": "IngressReady", "status": "True"},
                {
                    "type": "PredictorReady",
                    "status": "True",
                    "reason": "NewReplicaSetAvailable",
                    "message": message,
                },
                {"type": "Ready", "status": "True"},
                {"type": "Stopped", "status": "False", "severity": "Info"},
            ],
            "deploymentMode": "Standard",
            "modelStatus": {
                "copies": {"failedCopies": 0, "totalCopies": 1},
                "states": {"activeModelState": "Loaded", "targetModelState": "Loaded"},
                "transitionStatus": "UpToDate",
            },
            "observedGeneration": 1,
            "url": "http://sklearn-iris-default.example.com",
        }
