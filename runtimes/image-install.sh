#!/bin/sh
# Puts a model server and its framework into /opt/venv; the Dockerfile runs it.
# Usage: image-install.sh EXTRA "DISTRIBUTION TO REMOVE..."
set -eu
python3 -m venv --without-pip /opt/venv
python3 -m venv /opt/pip
# Where a proxy has certificates of its own, those of the machine that builds.
if [ -s /src/ca.pem ]; then export PIP_CERT=/src/ca.pem; fi
pip() { /opt/pip/bin/python -m pip --disable-pip-version-check --python /opt/venv/bin/python "$@"; }
pip install --no-cache-dir --progress-bar off -c /src/image-constraints.txt "/src[$1]"
for name in $2; do pip uninstall --yes "$name"; done
find /opt/venv -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
