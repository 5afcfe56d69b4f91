"""`kserve-local validate` as a process: exit codes, streams, and what it must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("pydantic", "fastapi", "kubernetes", "kserve", "numpy", "cel", "rich", "cryptography")
SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: iris-%d}
spec: {predictor: {model: {modelFormat: {name: sklearn}, storageUri: gs://b/m}}}
---
"""


def validate(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kserve_local.cli.main", "validate", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_exit_codes_and_streams(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(SERVICE % 1)
    (tmp_path / "bad.yaml").write_text((SERVICE % 1).replace("predictor", "predicter"))
    good = validate("good.yaml", cwd=tmp_path)
    assert (good.returncode, good.stdout, good.stderr) == (
        0,
        "1 object, 0 errors, 0 warnings\n",
        "",
    )
    bad = validate("bad.yaml", cwd=tmp_path)
    assert bad.returncode == 3
    assert bad.stdout.splitlines() == [
        "bad.yaml:4:1 error spec.predictor: Required value",
        'bad.yaml:4:8 warning unknown field "predicter" in spec; did you mean "predictor"?',
        "1 object, 1 error, 1 warning (exit 3)",
    ]
    missing = validate("--json", "missing.yaml", cwd=tmp_path)
    assert missing.returncode == 2
    assert json.loads(missing.stdout)["error"]["category"] == "USAGE"


def test_standard_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kserve_local.cli.main", "validate", "-"]
    done = subprocess.run(
        command, cwd=tmp_path, input=SERVICE % 1, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "1 object, 0 errors, 0 warnings\n")


def test_standard_input_that_is_no_text_is_an_invalid_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kserve_local.cli.main", "validate", "-"]
    done = subprocess.run(
        command, cwd=tmp_path, input=b"kind: \xff\xfe", capture_output=True, timeout=60
    )
    assert done.returncode == 3
    assert done.stdout.decode().splitlines()[0] == (
        "-:1:1 error not UTF-8 text: invalid start byte at byte 6"
    )
    assert done.stderr == b""


def test_the_rules_are_of_one_version_of_kserve(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(SERVICE % 1)
    for version, code in (("0.20", 0), ("v0.20.0", 0), ("0.19", 2), ("0.2", 2)):
        command = [sys.executable, "-m", "kserve_local.cli.main", "validate", "all.yaml"]
        done = subprocess.run(
            [*command, "--kserve-version", version],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert not code or "those of KServe 0.20" in done.stderr


def test_it_starts_fast_because_it_imports_little(tmp_path: Path) -> None:
    """Half a second for fifty objects leaves no room for a framework; the CEL evaluator waits."""
    (tmp_path / "all.yaml").write_text("".join(SERVICE % n for n in range(50)))
    script = (
        "import sys\n"
        "from kserve_local.cli.main import cli\n"
        "assert cli.main(['validate', 'all.yaml'], standalone_mode=False) in (0, None)\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "50 objects, 0 errors, 0 warnings\n"
