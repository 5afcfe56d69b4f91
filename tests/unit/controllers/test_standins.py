"""Which server stands in for an image: names, arguments, layouts, and honest refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kserve_local.controllers.standins import (
    ImageRequest,
    NoStandIn,
    StandIn,
    option,
    repository,
    source_for,
    source_program,
    stand_in,
)
from kserve_local.interfaces.backend import Program
from kserve_local.settings import ImageSource, RuntimeConfig

ARGS = ("--model_name=iris", "--model_dir=/mnt/models", "--http_port=8080")
TRITON = (
    "tritonserver",
    "--model-store=/mnt/models",
    "--grpc-port=9000",
    "--http-port=8080",
    "--allow-grpc=true",
)


def program(request: ImageRequest) -> Program:
    found = stand_in(request)
    assert isinstance(found, StandIn), found
    return found.program


def refusal(request: ImageRequest) -> str:
    found = stand_in(request)
    assert isinstance(found, NoStandIn), found
    return found.message


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("kserve/sklearnserver:v0.20.0", "kserve/sklearnserver"),
        ("docker.io/kserve/sklearnserver@sha256:abc", "kserve/sklearnserver"),
        ("localhost:5000/kserve/xgbserver:dev", "kserve/xgbserver"),
        ("ghcr.io/mirror/kserve/lgbserver", "mirror/kserve/lgbserver"),
        ("python:3.11", "python"),
    ],
)
def test_registry_tag_and_digest_do_not_matter(image: str, name: str) -> None:
    assert repository(image) == name


@pytest.mark.parametrize("server", ["sklearnserver", "xgbserver", "lgbserver", "predictiveserver"])
def test_kserves_own_servers_have_the_same_name(server: str) -> None:
    found = stand_in(ImageRequest(f"ghcr.io/kserve/{server}:v0.20.0", args=ARGS))
    assert isinstance(found, StandIn)
    assert found.program.argv == ("-m", server, *ARGS)
    assert found.program.kind == "runtime"
    assert found.note == (
        f"{server} of kserve-local stands in for image ghcr.io/kserve/{server}:v0.20.0"
    )


def test_a_command_that_starts_the_same_server_is_understood() -> None:
    command = ("python3", "-m", "sklearnserver")
    request = ImageRequest("kserve/sklearnserver", command=command, args=ARGS)
    assert program(request).argv == ("-m", "sklearnserver", *ARGS)


def test_a_command_that_starts_something_else_is_refused() -> None:
    message = refusal(ImageRequest("kserve/sklearnserver", command=("sh", "-c", "true")))
    assert "`sh -c true`" in message
    assert "`python -m sklearnserver`" in message


@pytest.mark.parametrize(
    ("implementation", "server"),
    [
        ("mlserver_sklearn.SKLearnModel", "sklearnserver"),
        ("mlserver_xgboost.XGBoostModel", "xgbserver"),
        ("mlserver_lightgbm.LightGBMModel", "lgbserver"),
    ],
)
def test_mlserver_goes_by_its_implementation(implementation: str, server: str) -> None:
    env = {
        "MLSERVER_MODEL_IMPLEMENTATION": implementation,
        "MLSERVER_MODEL_NAME": "iris",
        "MLSERVER_MODEL_URI": "/mnt/models",
        "MLSERVER_HTTP_PORT": "8080",
    }
    argv = program(ImageRequest("docker.io/seldonio/mlserver:1.7.1", env=env)).argv
    assert argv[:2] == ("-m", server)
    assert option(argv, "--model_name") == "iris"
    assert option(argv, "--answers") == "mlserver"
    assert option(argv, "--model_dir") == "/mnt/models"
    assert option(argv, "--http_port") == "8080"


def test_model_settings_win_over_the_environment() -> None:
    """As in MLServer, where the file's values are given and the variables are defaults."""
    request = ImageRequest(
        "seldonio/mlserver",
        env={
            "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
            "MLSERVER_MODEL_NAME": "from-env",
        },
        model_settings={
            "name": "from-file",
            "implementation": "mlserver_xgboost.XGBoostModel",
            "parameters": {"uri": "./sub/model.bst"},
        },
    )
    argv = program(request).argv
    assert argv[1] == "xgbserver"
    assert option(argv, "--model_name") == "from-file"
    assert option(argv, "--model_dir") == "/mnt/models/sub/model.bst"


def test_an_mlserver_implementation_without_stand_in_says_which_have_one() -> None:
    env = {"MLSERVER_MODEL_IMPLEMENTATION": "mlserver_mlflow.MLflowRuntime"}
    message = refusal(ImageRequest("seldonio/mlserver", env=env))
    assert "mlserver_mlflow.MLflowRuntime" in message
    assert "mlserver_sklearn.SKLearnModel" in message


@pytest.mark.parametrize(
    ("file", "server"), [("model.onnx", "onnxserver"), ("model.pt", "torchserver")]
)
def test_triton_goes_by_the_files_of_its_repository(file: str, server: str) -> None:
    request = ImageRequest(
        "nvcr.io/nvidia/tritonserver:23.05-py3",
        args=TRITON,
        model_files=("iris/config.pbtxt", f"iris/1/{file}"),
    )
    argv = program(request).argv
    assert argv[:2] == ("-m", server)
    assert option(argv, "--model_repository") == "/mnt/models"
    assert option(argv, "--layout") == "triton"
    assert option(argv, "--http_port") == "8080"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("net.onnx",), "Triton expects NAME/1/model.onnx below the storageUri, there is only net"),
        (("net.onnx",), "or set runtime: kserve-local-onnxserver"),
        (("net.pt2",), "or set runtime: kserve-local-torchserver"),
        (("a/1/model.plan",), "Triton's model.plan of 'a' has no stand-in"),
        (("a/1/model.savedmodel/saved_model.pb",), "model.savedmodel of 'a'"),
        (("a/1/model.onnx", "b/1/model.pt"), "mixes model.onnx ('a') and model.pt ('b')"),
    ],
)
def test_a_repository_nobody_serves_is_refused(files: tuple[str, ...], said: str) -> None:
    request = ImageRequest("nvidia/tritonserver", args=TRITON, model_files=files)
    assert said in refusal(request)


def test_a_repository_may_name_its_files_otherwise() -> None:
    files = ("iris/config.pbtxt", "iris/1/weights.pt")
    request = ImageRequest("nvidia/tritonserver", args=TRITON, model_files=files)
    assert program(request).runtime == "torchserver"


@pytest.mark.parametrize(
    ("file", "preload"),
    [("model.pt2", "torchserver.warm:warm_export"), ("model.pt", "torchserver.warm:warm")],
)
def test_exported_programs_want_more_imported(file: str, preload: str) -> None:
    request = ImageRequest("kserve-local/torchserver", args=ARGS, model_files=(file,))
    assert program(request).preload == (preload,)


def test_before_the_model_is_there_triton_may_have_a_stand_in() -> None:
    """Nothing may be refused before the repository can be looked at."""
    assert isinstance(stand_in(ImageRequest("nvidia/tritonserver", args=TRITON)), StandIn)


def test_torchserve_understands_its_model_store() -> None:
    args = (
        "torchserve",
        "--start",
        "--model-store=/mnt/models/model-store",
        "--ts-config=/mnt/models/config/config.properties",
    )
    argv = program(ImageRequest("pytorch/torchserve-kfs:0.9.0", args=args)).argv
    assert argv[:2] == ("-m", "torchserver")
    assert option(argv, "--model_repository") == "/mnt/models/model-store"
    assert option(argv, "--layout") == "torchserve"


@pytest.mark.parametrize("image", ["kserve/huggingfaceserver:v0.20.0", "team/fraud:dev"])
def test_an_image_without_stand_in_names_the_way_out(image: str) -> None:
    message = refusal(ImageRequest(image))
    assert message.startswith(f'Container image "{image}" cannot run here: ')
    assert "kserve-local.yaml" in message


def test_our_own_servers_need_our_owner_name() -> None:
    assert program(ImageRequest("kserve-local/onnxserver")).runtime == "onnxserver"
    assert "no stand-in" in refusal(ImageRequest("team/onnxserver"))


def test_a_runtime_may_have_an_interpreter_of_its_own() -> None:
    config = RuntimeConfig(python=Path("/opt/py/bin/python"))
    found = stand_in(ImageRequest("kserve/sklearnserver", args=ARGS), runtime=config)
    assert isinstance(found, StandIn)
    assert found.program.python == Path("/opt/py/bin/python")


SOURCE = ImageSource(Path("/project"), ("python", "model.py"))


@pytest.mark.parametrize(
    ("mapped", "image"),
    [
        ("my/fraud:dev", "my/fraud:dev"),
        ("my/fraud", "my/fraud:dev"),
        ("my/fraud", "registry.example.com/my/fraud:dev"),
        ("my/fraud:dev", "my/fraud:dev@sha256:abc"),
    ],
)
def test_an_image_is_mapped_by_its_name(mapped: str, image: str) -> None:
    assert source_for(image, {mapped: SOURCE}) is SOURCE


def test_another_tag_is_another_image() -> None:
    assert source_for("my/fraud:v2", {"my/fraud:v1": SOURCE}) is None


def from_source(source: ImageSource, request: ImageRequest) -> Program:
    found = source_program(
        request, source, default_python=Path("/venv/bin/python"), has_kserve=True
    )
    assert isinstance(found, Program), found
    return found


def test_args_are_appended_to_the_images_command() -> None:
    found = from_source(SOURCE, ImageRequest("f", args=("--model_name", "x")))
    assert found.argv == ("model.py", "--model_name", "x")
    assert (found.python, found.cwd) == (Path("/venv/bin/python"), Path("/project"))


def test_the_pods_command_replaces_the_images() -> None:
    found = from_source(SOURCE, ImageRequest("f", command=("python", "-m", "other"), args=("a",)))
    assert found.argv == ("-m", "other", "a")


def test_a_command_that_is_no_python_stays_whole() -> None:
    found = from_source(SOURCE, ImageRequest("f", command=("./serve.sh", "x")))
    assert (found.argv, found.is_python) == (("./serve.sh", "x"), False)


def interpreter_at(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.symlink_to(sys.executable)
    return path


@pytest.mark.parametrize("name", ["python", "python3", "python3.11"])
def test_an_interpreter_named_by_its_path_is_the_one_that_runs(tmp_path: Path, name: str) -> None:
    """Only a bare `python` means the project's interpreter."""
    other = interpreter_at(tmp_path / "other" / "bin" / name)
    (tmp_path / "code").mkdir()
    for word in (str(other), f"../other/bin/{name}"):
        source = ImageSource(
            tmp_path / "code", (word, "-u", "m.py"), requirements=Path("r.txt"), python=Path("/x")
        )
        found = from_source(source, ImageRequest("f", args=("a",)))
        assert (found.python, found.requirements) == (other, None)
        assert (found.argv, found.is_python) == (("m.py", "a"), True)


def test_an_interpreter_that_is_not_there_is_not_replaced(tmp_path: Path) -> None:
    """The start fails with the path, as it would in a container."""
    source = ImageSource(tmp_path, ("/no/such/python3", "m.py"))
    found = from_source(source, ImageRequest("f"))
    assert (found.argv, found.is_python) == (("/no/such/python3", "m.py"), False)


def test_a_pods_path_to_python_means_the_images_own() -> None:
    """A cluster's YAML knows nothing of this machine: the path is one inside the image."""
    for word in ("/usr/bin/python3", ".venv/bin/python", "/opt/venv/bin/python"):
        found = from_source(SOURCE, ImageRequest("f", command=(word, "model.py")))
        assert (found.python, found.argv) == (Path("/venv/bin/python"), ("model.py",))


def test_another_interpreter_is_not_forked_from_the_projects_imports(tmp_path: Path) -> None:
    """Whether it has kserve is only known of the project's own."""
    (tmp_path / "model.py").write_text("import kserve\n")
    other = interpreter_at(tmp_path / "other" / "bin" / "python")
    own = interpreter_at(tmp_path / ".venv" / "bin" / "python")
    for word, preload in ((str(other), ()), (".venv/bin/python", ("kserve",))):
        found = source_program(
            ImageRequest("f"),
            ImageSource(tmp_path, (word, "model.py")),
            default_python=own,
            has_kserve=True,
        )
        assert isinstance(found, Program)
        assert found.preload == preload


def test_requirements_get_an_environment_of_their_own() -> None:
    source = ImageSource(Path("/project"), ("python", "m.py"), requirements=Path("r.txt"))
    found = from_source(source, ImageRequest("f"))
    assert (found.python, found.requirements) == (None, Path("r.txt"))


@pytest.mark.parametrize(
    ("text", "preload"),
    [("from kserve import Model\n", ("kserve",)), ("import kserveless\n", ())],
)
def test_code_that_imports_kserve_may_be_forked(
    tmp_path: Path, text: str, preload: tuple[str, ...]
) -> None:
    (tmp_path / "model.py").write_text(text)
    found = from_source(ImageSource(tmp_path, ("python", "model.py")), ImageRequest("f"))
    assert found.preload == preload


def test_without_any_command_the_file_says_what_to_add() -> None:
    found = source_program(
        ImageRequest("f"), ImageSource(Path("/p")), default_python=Path("/py"), has_kserve=False
    )
    assert isinstance(found, NoStandIn)
    assert 'images."f" has no command' in found.message
