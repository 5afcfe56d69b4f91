"""Where an object's YAML is, and how it is written back: whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_local import settings
from kserve_local.cli.manifest_source import Source, source_of, write
from kserve_local.errors import Conflict, Invalid, UsageError
from kserve_local.settings import Settings

FIELD = ("spec", "predictor", "canaryTrafficPercent")
TEXT = """\
# first
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: iris  # the one
spec:
  predictor:
    canaryTrafficPercent: 10
    model: {modelFormat: {name: sklearn}, storageUri: "./ü"}
"""


def project(folder: Path, **files: str | bytes) -> Settings:
    for name, content in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return settings.load(folder)


def running(file: str = "", namespace: str = "default") -> dict[str, Any]:
    annotations = {"kserve-local.dev/manifest": file} if file else {}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": namespace, "annotations": annotations},
        "spec": {},
    }


def found(obj: dict[str, Any], at: Settings) -> Source:
    source = source_of(obj, at)
    assert source is not None
    return source


def test_the_file_that_the_object_names_is_edited(tmp_path: Path) -> None:
    at = project(tmp_path, a=TEXT.replace("name: iris", "name: rose"), b=TEXT)
    source = found(running("b.yaml"), at)
    assert (source.shown, source.line_of(FIELD)) == ("b.yaml", 12)
    assert source.object["metadata"]["namespace"] == "default"
    assert source.object["metadata"]["annotations"] == {"kserve-local.dev/manifest": "b.yaml"}
    after = source.changed(FIELD, 50, at)
    assert after.object["spec"]["predictor"]["canaryTrafficPercent"] == 50
    assert (tmp_path / "b.yaml").read_text() == TEXT
    write(source, after)
    assert (tmp_path / "b.yaml").read_text() == TEXT.replace(": 10", ": 50")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize("named", ["", "gone.yaml", "a.yaml"])
def test_else_a_file_of_the_project_that_holds_it(tmp_path: Path, named: str) -> None:
    """It was moved, or came by kubectl; a broken file on the way is not this one's fault."""
    at = project(tmp_path, a=TEXT.replace("name: iris", "name: rose"), b="a: [", c=TEXT)
    assert found(running(named), at).shown == "c.yaml"
    assert source_of(running(namespace="team"), at) is None


def test_no_file_holds_it(tmp_path: Path) -> None:
    assert source_of(running(), project(tmp_path)) is None


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_bytes_that_are_no_text_stay(tmp_path: Path, head: bytes, ends: str) -> None:
    content = head + TEXT.replace("\n", ends).encode()
    at = project(tmp_path, a=content)
    source = found(running("a.yaml"), at)
    write(source, source.changed(FIELD, None, at))
    line = f"    canaryTrafficPercent: 10{ends}".encode()
    assert (tmp_path / "a.yaml").read_bytes() == content.replace(line, b"")


@pytest.mark.parametrize("text", [TEXT.replace("\n", "\r\n", 2), TEXT.replace("\n", "\r", 1)])
def test_mixed_line_ends_are_left_alone(tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid, match=r"a.yaml mixes ways to end a line") as caught:
        source_of(running("a.yaml"), project(tmp_path, a=text))
    assert "--no-edit" in caught.value.hint


def test_its_own_file_must_be_readable(tmp_path: Path) -> None:
    at = project(tmp_path, a="kind: [\n")
    with pytest.raises(Invalid, match=r"a.yaml:\d+:\d+: not YAML") as caught:
        source_of(running("a.yaml"), at)
    assert "--no-edit" in caught.value.hint


def test_a_broken_document_beside_it_does_not_matter(tmp_path: Path) -> None:
    at = project(tmp_path, a=f"{TEXT}---\nkind: [\n")
    source = found(running("a.yaml"), at)
    assert source.changed(FIELD, 1, at).text == source.text.replace(": 10", ": 1")


def test_a_file_that_was_saved_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    at = project(tmp_path, a=TEXT)
    source = found(running("a.yaml"), at)
    after = source.changed(FIELD, 50, at)
    saved = TEXT.replace("# first", "# edited")
    (tmp_path / "a.yaml").write_text(saved)
    with pytest.raises(Conflict, match="has changed since it was read"):
        write(source, after)
    assert (tmp_path / "a.yaml").read_text() == saved


def test_links_and_modes_stay(tmp_path: Path) -> None:
    at = project(tmp_path / "p", a="")
    real = tmp_path / "real.yaml"
    real.write_text(TEXT)
    real.chmod(0o640)
    (tmp_path / "p" / "a.yaml").unlink()
    (tmp_path / "p" / "a.yaml").symlink_to(real)
    source = found(running("a.yaml"), at)
    write(source, source.changed(FIELD, 50, at))
    assert (tmp_path / "p" / "a.yaml").is_symlink()
    assert real.read_text() == TEXT.replace(": 10", ": 50")
    assert real.stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = project(tmp_path, a=TEXT)
    source = found(running("a.yaml"), at)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UsageError, match=r"a.yaml cannot be written: No space left"):
        write(source, source.changed(FIELD, 50, at))
    assert [p.name for p in tmp_path.iterdir()] == ["a.yaml"]
    assert (tmp_path / "a.yaml").read_text() == TEXT


def test_what_cannot_be_edited_names_the_line_and_the_way_out(tmp_path: Path) -> None:
    at = project(
        tmp_path,
        a=TEXT.replace("canaryTrafficPercent: 10", "canaryTrafficPercent: &n 10").replace(
            "storageUri:", "minReplicas: *n, storageUri:"
        ),
    )
    with pytest.raises(Invalid) as caught:
        found(running("a.yaml"), at).changed(FIELD, 50, at)
    assert caught.value.message.startswith("a.yaml:12:5: spec.predictor.canaryTrafficPercent ")
    assert "by hand" in caught.value.hint
    assert "--no-edit" in caught.value.hint
