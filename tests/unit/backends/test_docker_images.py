"""What images are built from, and their names."""

from __future__ import annotations

import io
import os
import re
import tarfile
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from kserve_local.backends import docker_images
from kserve_local.backends.docker_builds import step_of
from kserve_local.backends.environments import EXTRAS
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import Build

REPOSITORY = Path(__file__).parents[3]


def names_in(recipe: docker_images.Recipe) -> set[str]:
    """Return what is in the context of a build."""
    archive = io.BytesIO()
    recipe.write(archive)
    with tarfile.open(fileobj=archive) as found:
        return set(found.getnames())


def source_of(image: str, context: Path, **more: Any) -> docker_images.Recipe:
    """Return the recipe of a folder."""
    return docker_images.source(image, Build(context=context, **more), {})


@pytest.mark.parametrize("server", EXTRAS)
def test_a_servers_image_holds_the_servers_and_the_recipe(server: str) -> None:
    recipe = docker_images.runtime(server, {})
    assert re.fullmatch(rf"kserve-local/{server}:0\.1\.0-[0-9a-f]{{12}}", recipe.image)
    held = names_in(recipe)
    assert {"Dockerfile", "image-constraints.txt", "image-install.sh", "pyproject.toml"} <= held
    assert {f"{server}/__main__.py", "modelserver/serve.py", "podlauncher/main.py"} <= held
    assert not any("__pycache__" in name for name in held)
    assert recipe.labels == {docker_images.LABEL: server}


def test_pips_settings_reach_the_build_and_not_the_name(tmp_path: Path) -> None:
    plain = docker_images.runtime("sklearnserver", {})
    (tmp_path / "ca.pem").write_text("certificate")
    environ = {
        "PIP_INDEX_URL": "http://mirror/simple",
        "PIP_CERT": str(tmp_path / "ca.pem"),
        "HTTPS_PROXY": "http://proxy:3128",
    }
    told = docker_images.runtime("sklearnserver", environ)
    assert told.image == plain.image
    assert told.arguments["PIP_INDEX_URL"] == "http://mirror/simple"
    assert told.arguments["HTTPS_PROXY"] == "http://proxy:3128"
    assert told.texts["ca.pem"] == b"certificate"
    other = docker_images.runtime("sklearnserver", {}, base="python:3.12-slim")
    assert other.image != plain.image


def test_pytorch_comes_without_cuda_unless_an_index_is_named() -> None:
    def index(server: str, environ: dict[str, str]) -> str | None:
        return docker_images.runtime(server, environ).arguments.get("PIP_EXTRA_INDEX_URL")

    assert index("torchserver", {}) == "https://download.pytorch.org/whl/cpu"
    assert index("torchserver", {"PIP_INDEX_URL": "http://mirror/simple"}) is None
    assert index("torchserver", {"PIP_EXTRA_INDEX_URL": "http://cu/whl"}) == "http://cu/whl"
    assert index("sklearnserver", {}) is None


def test_there_is_no_image_of_a_server_that_is_not_there() -> None:
    with pytest.raises(Missing, match="no model server") as error:
        docker_images.runtime("nope", {})
    assert "sklearnserver" in error.value.hint


def test_the_versions_in_images_are_those_that_are_tested() -> None:
    def pins(path: Path) -> set[str]:
        lines = path.read_text().splitlines()
        return {line.strip() for line in lines if "==" in line and not line.startswith("#")}

    assert pins(REPOSITORY / "runtimes/image-constraints.txt") <= pins(
        REPOSITORY / "constraints.txt"
    )


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /app\n")
    (tmp_path / "model.py").write_text("x = 1\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(b"0")
    (tmp_path / "data" / "keep.txt").write_text("k")
    return tmp_path


def test_a_users_image_is_named_by_what_is_in_it(context: Path) -> None:
    before = source_of("my/fraud:dev", context)
    assert re.fullmatch(r"kserve-local/source/my-fraud:[0-9a-f]{12}", before.image)
    assert source_of("my/fraud:dev", context).image == before.image
    (context / "model.py").write_text("x = 2\n")
    after = source_of("my/fraud:dev", context)
    assert after.image != before.image
    (context / "model.py").chmod(0o755)
    assert source_of("my/fraud:dev", context).image != after.image
    assert names_in(after) == {"Dockerfile", "model.py", "data/big.bin", "data/keep.txt"}
    assert after.labels[docker_images.SOURCE] == str(context)


def test_a_name_of_a_registry_with_a_port_gives_a_valid_one(context: Path) -> None:
    image = source_of("reg.io:5000/Team/Fraud", context).image
    assert re.fullmatch(r"[a-z0-9/._-]+:[0-9a-f]{12}", image)


@pytest.mark.parametrize(
    ("ignore", "held"),
    [
        ("data", {"model.py"}),
        ("data\n!data/keep.txt", {"model.py", "data/keep.txt"}),
        ("*.py", {"data/big.bin", "data/keep.txt"}),
        ("**/*.bin", {"model.py", "data/keep.txt"}),
        ("# data\n\n/data/", {"model.py"}),
        ("Dockerfile", {"model.py", "data/big.bin", "data/keep.txt"}),
    ],
)
def test_a_dockerignore_is_heeded(context: Path, ignore: str, held: set[str]) -> None:
    (context / ".dockerignore").write_text(ignore)
    found = names_in(source_of("a:b", context))
    assert found - {".dockerignore"} == held | {"Dockerfile"}


def test_a_folder_without_a_dockerfile_or_command_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r'image "a:b": .* has no Dockerfile') as error:
        source_of("a:b", tmp_path)
    assert "images.a:b.command: [python, model.py]" in error.value.hint


def test_source_without_a_dockerfile_becomes_python_with_what_it_needs(context: Path) -> None:
    (context / "Dockerfile").unlink()
    plain = source_of("a:b", context, command=("python", "model.py"))
    text = plain.texts[plain.dockerfile].decode()
    assert 'ENTRYPOINT ["python", "model.py"]' in text
    assert "USER 1000" in text
    lines = plain.texts[".kserve-local.requirements.txt"]
    assert lines == b""
    (context / "requirements.txt").write_text("numpy\n")
    more = source_of("a:b", context, command=("python", "model.py"), packages=("kserve==0.20.0",))
    assert more.texts[".kserve-local.requirements.txt"] == b"kserve==0.20.0\nnumpy\n"
    assert more.image != plain.image
    with pytest.raises(Missing, match="requirements file"):
        source_of("a:b", context, command=("x",), requirements=context / "gone.txt")


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("FROM a\nRUN echo", False),
        ("# syntax=docker/dockerfile:1\nFROM a", True),
        ("FROM a\nRUN --mount=type=cache,target=/c pip install x", True),
        ("FROM a\nRUN <<EOF\necho\nEOF", True),
        ("FROM a\nCOPY --from=b /x /x", False),
    ],
)
def test_what_only_buildkit_knows_is_seen(context: Path, text: str, needs: bool) -> None:
    (context / "Dockerfile").write_text(text)
    assert source_of("a:b", context).needs_buildkit is needs


def test_live_source_lies_where_the_image_has_it(context: Path) -> None:
    mounts = docker_images.live(context, ("model.py", "data/", "gone"), "/app")
    assert [(m.path, m.source, m.read_only) for m in mounts] == [
        ("/app/model.py", context / "model.py", True),
        ("/app/data", context / "data", True),
    ]


def test_only_lines_that_tell_how_far_a_build_is_are_shown() -> None:
    assert step_of("---> 8123") == ""
    assert step_of("Step 1/3 : FROM a") == "Step 1/3 : FROM a"
    assert step_of("Collecting " + "x" * 100).endswith("…")


def test_links_to_folders_and_empty_folders_are_in_the_image(context: Path) -> None:
    before = source_of("a:b", context)
    (context / "out" / "logs").mkdir(parents=True)
    (context / "models").symlink_to("data")
    (context / "gone").symlink_to("nowhere")
    after = source_of("a:b", context)
    assert after.image != before.image
    assert names_in(after) - names_in(before) == {"out/logs", "models", "gone"}
    (context / "models").unlink()
    (context / "models").symlink_to("out")
    assert source_of("a:b", context).image != after.image
    (context / "models").unlink()
    (context / "gone").unlink()
    (context / "out" / "logs").rmdir()
    (context / "out").rmdir()
    assert source_of("a:b", context).image == before.image
    # What is left of a folder when all in it is ignored.
    (context / ".dockerignore").write_text("data/*")
    assert "data" in names_in(source_of("a:b", context))


def test_a_large_context_is_not_held_in_memory(context: Path, tmp_path: Path) -> None:
    with (context / "data" / "big.bin").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        recipe = source_of("a:b", context)
        with tempfile.TemporaryFile() as archive:
            recipe.write(archive)
            assert archive.tell() == 0
            assert archive.seek(0, os.SEEK_END) > 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_has_not_changed_is_not_read_again(
    context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_images, "_SETTLED", -1.0)
    before = source_of("a:b", context).image
    read: list[Path] = []
    opened = Path.open

    def open_(path: Path, *args: Any, **kwargs: Any) -> Any:
        read.append(path)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)
    assert source_of("a:b", context).image == before
    assert context / "data" / "big.bin" not in read
    time.sleep(0.02)  # the clock of files is coarse
    (context / "data" / "big.bin").write_bytes(b"1")
    assert source_of("a:b", context).image != before
    assert context / "data" / "big.bin" in read
