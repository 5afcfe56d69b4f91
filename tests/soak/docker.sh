#!/bin/sh
# The suites of the spine with every Pod in Docker, and the recorded answers through the gateway.
# `make soak` runs it after the kills; about 30 minutes on 2 cores. Usage: sh tests/soak/docker.sh
set -eu
cd "$(dirname "$0")/../.."
.ci/docker
export KSERVE_LOCAL_TEST_BACKEND=docker
# Before the tests, whose patience is for starts.
.venv/bin/kserve-local images build sklearnserver xgbserver lgbserver onnxserver
.venv/bin/python -m pytest tests/contract -m docker
.venv/bin/python -m pytest \
    tests/integration/test_up.py tests/integration/test_cli.py tests/integration/test_cli_get.py \
    tests/integration/test_cli_predict.py tests/integration/test_cli_wait.py \
    tests/integration/test_fidelity.py tests/integration/test_sdk.py \
    tests/integration/test_storage_end_to_end.py tests/integration/test_storage_cache.py \
    tests/integration/test_components.py tests/integration/test_agent.py \
    tests/integration/test_graph_project.py tests/integration/test_faults.py
.venv/bin/python -m pytest tests/integration/test_samples.py -k "not torch"
.venv/bin/python -m tests.conformance.run --backend docker
