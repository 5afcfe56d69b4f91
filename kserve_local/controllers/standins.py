"""Which server of ours stands in for a container image, or why none does. Pure.

Reads an image name, the container's resolved command, arguments and environment, and what the
model directory holds; gives the `Program` the process backend starts. The Pod itself stays exactly
KServe's. Image names are compared by repository: registry, tag and digest do not matter. Flags,
variables and folder layouts are those of KServe's, MLServer's, Triton's and TorchServe's own
images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from kserve_local.interfaces.backend import Build, Program
from kserve_local.settings import ImageSource, RuntimeConfig

# What a zygote may import before it forks: imports that leave one thread behind. onnxruntime
# starts a thread when imported, so it never is one of them.
PRELOAD: Mapping[str, tuple[str, ...]] = {
    "sklearnserver": ("sklearnserver.warm:warm",),
    "xgbserver": ("xgbserver.warm:warm",),
    "lgbserver": ("lgbserver.warm:warm",),
    "predictiveserver": ("predictiveserver.warm:warm",),
    "torchserver": ("torchserver.warm:warm",),
    "onnxserver": ("modelserver.warm:warm",),
}
_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_SAME_NAME = frozenset({"sklearnserver", "xgbserver", "lgbserver", "predictiveserver"})
_OURS = frozenset({"onnxserver", "torchserver"})
_SOME_MODELS = frozenset({"mlserver", "tritonserver", "torchserve-kfs", "torchserve"})
_MLSERVER = {
    "mlserver_sklearn.SKLearnModel": "sklearnserver",
    "mlserver_xgboost.XGBoostModel": "xgbserver",
    "mlserver_lightgbm.LightGBMModel": "lgbserver",
}
_TRITON_FILES = {"model.onnx": "onnxserver", "model.pt": "torchserver"}
_NO_SERVER_YET = {
    "huggingfaceserver": "Hugging Face models",
    "vllm-openai": "vLLM",
    "vllm-openai-cpu": "vLLM",
    "serving": "TensorFlow SavedModels",
    "pmmlserver": "PMML",
    "paddleserver": "PaddlePaddle",
    "autogluonserver": "AutoGluon",
    "model_server": "OpenVINO",
    "art-explainer": "ART explanations",
    "agent": "KServe's agent",
    "router": "routers without an InferenceGraph",
}


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What is known about the container whose image needs a program.

    Args:
        command / args: Resolved, as the Pod says them.
        model_files: Paths relative to the model directory, at least three levels deep; None while
            the model has not been fetched.
        model_settings: Content of `model-settings.json` in the model directory.
    """

    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    model_files: Collection[str] | None = None
    model_settings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StandIn:
    """A program for the image. `note` says what stands in for what; empty for local source."""

    program: Program
    note: str = ""


@dataclass(frozen=True, slots=True)
class NoStandIn:
    """Why no program of ours can run, in one sentence, and what the user can do.

    Args:
        next_step: The way out where it is not the usual one (local source for the image).
    """

    message: str
    next_step: str = ""


def repository(image: str) -> str:
    """Return the repository without registry, tag and digest: `kserve/sklearnserver`."""
    name = image.partition("@")[0]
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        name = rest
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}".removeprefix("library/")


def source_for(image: str, images: Mapping[str, ImageSource]) -> ImageSource | None:
    """Return the local source an image is mapped to: by the full name, else without the digest or
    tag, else by repository alone.
    """
    undigested = image.partition("@")[0]
    head, slash, last = undigested.rpartition("/")
    untagged = f"{head}{slash}{last.partition(':')[0]}"
    for name in (image, undigested, untagged):
        if name in images:
            return images[name]
    wanted = repository(image)
    tag = last.partition(":")[2]
    for name, source in images.items():
        named_tag = name.rpartition("/")[2].partition(":")[2]
        if repository(name) == wanted and (not named_tag or named_tag == tag):
            return source
    return None


def known(images: Mapping[str, ImageSource]) -> Callable[[str], bool]:
    """Return what tells which images run without a container engine, for the review of a file."""
    return lambda image: is_known(image, images)


def is_known(image: str, images: Mapping[str, ImageSource]) -> bool:
    """Whether local source, or a server of ours for some models of it, runs in the image's place.

    Which models shows once the model is there.
    """
    owner, _, last = repository(image).rpartition("/")
    ours = last in _SAME_NAME or (last in _OURS and owner == "kserve-local")
    return ours or last in _SOME_MODELS or source_for(image, images) is not None


def option(args: Sequence[str], *names: str) -> str | None:
    """Return the value of the last of these options: `--a=b` or `--a b`; None if absent."""
    found = None
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") in {n.replace("_", "-") for n in names}:
            found = value if equals else (args[i + 1] if i + 1 < len(args) else "")
    return found


def _way_out(image: str) -> str:
    return (
        f'map the image to local source in kserve-local.yaml (images: {{"{image}": {{context: '
        "DIR, command: [python, model.py]}}), choose a runtime that has a stand-in, or "
        "start Docker, which runs any image"
    )


def _server_args(request: ImageRequest, server: str) -> tuple[str, ...] | None:
    """Return the server's arguments when command and args start `server` the usual way.

    The image's entry point is `python -m <server>`; a Pod may repeat it as its command. None: the
    Pod starts something else.
    """
    words = (*request.command, *request.args)
    if not request.command:
        return request.args
    interpreter = PurePosixPath(words[0]).name
    if _PYTHON.fullmatch(interpreter) and words[1:3] == ("-m", server):
        return words[3:]
    return None


def _preload(server: str, files: Collection[str] | None) -> tuple[str, ...]:
    """Return what the zygote imports: for exported programs more of PyTorch than for others."""
    if server == "torchserver" and any(f.endswith(".pt2") for f in files or ()):
        return ("torchserver.warm:warm_export",)
    return PRELOAD.get(server, ())


def _program(
    server: str, args: Sequence[str], runtime: RuntimeConfig | None, preload: tuple[str, ...]
) -> Program:
    return Program(
        kind="runtime",
        runtime=server,
        argv=("-m", server, *args),
        python=runtime.python if runtime else None,
        requirements=runtime.requirements if runtime else None,
        preload=preload,
    )


def _mlserver(request: ImageRequest) -> tuple[str, tuple[str, ...]] | NoStandIn:
    """Return our server and its arguments for an MLServer container.

    `model-settings.json` wins over `MLSERVER_MODEL_*`, as in MLServer.
    """
    if request.command or (request.args and request.args[:2] != ("mlserver", "start")):
        return NoStandIn(
            f"the stand-in for {request.image} understands the image's own start command only"
        )
    settings = request.model_settings or {}
    parameters = settings.get("parameters") or {}
    env = request.env
    implementation = str(
        settings.get("implementation") or env.get("MLSERVER_MODEL_IMPLEMENTATION") or ""
    )
    server = _MLSERVER.get(implementation)
    if server is None:
        known = ", ".join(_MLSERVER)
        return NoStandIn(
            f"MLServer's implementation {implementation or '(none given)'} has no stand-in; "
            f"those of {known} do"
        )
    directory = env.get("MLSERVER_MODEL_URI") or "/mnt/models"
    uri = str(parameters.get("uri") or "")
    if uri:
        directory = str(PurePosixPath(directory) / uri)  # may be a file; our servers take both
    name = str(settings.get("name") or env.get("MLSERVER_MODEL_NAME") or "")
    args = ["--model_dir", directory, "--http_port", env.get("MLSERVER_HTTP_PORT") or "8080"]
    args += ["--answers", "mlserver"]
    if name:
        args = ["--model_name", name, *args]
    if env.get("MLSERVER_GRPC_PORT"):
        args += ["--grpc_port", env["MLSERVER_GRPC_PORT"]]
    return server, tuple(args)


def triton_server(files: Collection[str]) -> str | NoStandIn:
    """Return the server for a Triton model repository, by its files: `<name>/<version>/model.*`.

    Source: Triton Inference Server, model repository layout.
    """
    models: dict[str, set[str]] = {}
    for path in files:
        parts = PurePosixPath(path).parts
        # A SavedModel is a folder, so deeper files count for it.
        if len(parts) < 3 or not parts[1].isdigit():
            continue
        name = parts[2]
        renamed = f"model{PurePosixPath(name).suffix}"
        if f"{parts[0]}/config.pbtxt" in files and renamed in _TRITON_FILES:
            name = renamed  # `default_model_filename`
        if name.startswith("model."):
            models.setdefault(name, set()).add(parts[0])
    served = {_TRITON_FILES[name]: models[name] for name in _TRITON_FILES if name in models}
    others = {name: models[name] for name in models if name not in _TRITON_FILES}
    if not models:
        return _no_repository(files)
    if others:
        found = "; ".join(f"{name} of {_named(who)}" for name, who in sorted(others.items()))
        return NoStandIn(
            f"Triton's {found} has no stand-in; model.onnx and model.pt do",
            "Serve other models from a storageUri of their own",
        )
    if len(served) > 1:
        found = " and ".join(
            f"{name} ({_named(models[name])})" for name in _TRITON_FILES if name in models
        )
        return NoStandIn(
            f"the model repository mixes {found}, and one stand-in serves only one kind",
            "Split it into two InferenceServices",
        )
    return next(iter(served))


def _named(models: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(models))


def _no_repository(files: Collection[str]) -> NoStandIn:
    """Say how a folder has to look for Triton, and which runtime of ours takes it as it is."""
    plain = sorted(f for f in files if PurePosixPath(f).suffix in (".onnx", ".pt", ".pt2"))
    first = PurePosixPath(plain[0]) if plain else PurePosixPath("model.onnx")
    onnx = first.suffix == ".onnx"
    wanted = f"NAME/1/model{'.onnx' if onnx else '.pt'}"
    server = "onnxserver" if onnx else "torchserver"
    there = f"there is only {first}" if plain else "there is no model file"
    return NoStandIn(
        f"the model directory is no Triton model repository: Triton expects {wanted} below the "
        f"storageUri, {there}, so a cluster refuses it too",
        f"Move the file to {wanted}, or set runtime: kserve-local-{server}, which serves a plain "
        "file (in kserve-local only)",
    )


def _triton(request: ImageRequest) -> tuple[str, tuple[str, ...]] | NoStandIn:
    words = (*request.command, *request.args)
    if words and PurePosixPath(words[0]).name != "tritonserver":
        return NoStandIn(f"the stand-in for {request.image} understands `tritonserver` only")
    server = "onnxserver" if request.model_files is None else triton_server(request.model_files)
    if isinstance(server, NoStandIn):
        return server
    args = [
        "--model_repository",
        option(words, "--model-repository", "--model-store") or "/mnt/models",
        "--layout",
        "triton",
        "--http_port",
        option(words, "--http-port") or "8000",
    ]
    grpc_port = option(words, "--grpc-port")
    if grpc_port:
        args += ["--grpc_port", grpc_port]
    return server, tuple(args)


def _torchserve(request: ImageRequest) -> tuple[str, tuple[str, ...]] | NoStandIn:
    words = (*request.command, *request.args)
    if words and PurePosixPath(words[0]).name != "torchserve":
        return NoStandIn(f"the stand-in for {request.image} understands `torchserve` only")
    args = [
        "--model_repository",
        option(words, "--model-store") or "/mnt/models/model-store",
        "--layout",
        "torchserve",
        "--ts_config",
        option(words, "--ts-config") or "/mnt/models/config/config.properties",
        "--http_port",
        "8080",
    ]
    return "torchserver", tuple(args)


def _stand_in(request: ImageRequest) -> tuple[str, tuple[str, ...]] | NoStandIn:
    """Return the server of ours and its arguments."""
    name = repository(request.image)
    owner, _, last = name.rpartition("/")
    if last in _SAME_NAME or (last in _OURS and owner == "kserve-local"):
        args = _server_args(request, last)
        if args is None:
            shown = " ".join(request.command)
            return NoStandIn(
                f"the Pod replaces the image's command with `{shown}`, which the stand-in for "
                f"{request.image} does not have; `python -m {last}` it does"
            )
        return last, args
    if last == "mlserver":
        return _mlserver(request)
    if last == "tritonserver":
        return _triton(request)
    if last in ("torchserve-kfs", "torchserve"):
        return _torchserve(request)
    if last in _NO_SERVER_YET:
        return NoStandIn(f"no stand-in for {_NO_SERVER_YET[last]} yet")
    return NoStandIn("no stand-in for this image, and no container engine is used")


def _entry_imports_kserve(source: ImageSource, argv: Sequence[str]) -> bool:
    """Whether the program's file (the first `.py` argument, or `-m module`) imports kserve."""
    candidates = [a for a in argv if a.endswith(".py")]
    if argv[:1] == ["-m"] or tuple(argv[:1]) == ("-m",):
        path = argv[1].replace(".", "/") if len(argv) > 1 else ""
        candidates = [f"{path}.py", f"{path}/__main__.py"]
    for candidate in candidates[:2]:
        try:
            text = (source.context / candidate).read_text(errors="replace")
        except OSError:
            continue
        return re.search(r"^\s*(?:from|import)\s+kserve\b", text, re.MULTILINE) is not None
    return False


def build_of(source: ImageSource) -> Build:
    """Return how the image of local source is made for a container engine."""
    command = source.command
    named = command and "/" in command[0] and _PYTHON.fullmatch(PurePosixPath(command[0]).name)
    if named:
        command = ("python", *command[1:])  # A path of this machine means nothing in an image.
    argv = command[1:] if command and _PYTHON.fullmatch(command[0]) else command
    return Build(
        context=source.context,
        command=command,
        packages=(_kserve(),) if _entry_imports_kserve(source, argv) else (),
        requirements=source.requirements,
        reload=source.reload,
    )


def _kserve() -> str:
    """Return the SDK for an image, in the version that is installed here if one is."""
    try:
        return f"kserve=={metadata.version('kserve')}"
    except metadata.PackageNotFoundError:
        return "kserve"


def _named_interpreter(source: ImageSource, word: str) -> Path | None:
    """Return the Python that a command of `kserve-local.yaml` names by its path, None if none."""
    if "/" not in word or not _PYTHON.fullmatch(PurePosixPath(word).name):
        return None
    # Not resolved: a virtual environment's python is a link whose own place says which it is.
    return Path(os.path.normpath(source.context / Path(word).expanduser()))


def interpreter(project: Path, environ: Mapping[str, str]) -> Path | None:
    """Return the interpreter that `python` means: the project's `.venv`, else `$VIRTUAL_ENV`;
    None: the one that runs kserve-local.
    """
    for folder in (
        project / ".venv",
        Path(environ["VIRTUAL_ENV"]) if environ.get("VIRTUAL_ENV") else None,
    ):
        if folder is not None and (folder / "bin" / "python").exists():
            return folder / "bin" / "python"
    return None


def source_program(
    request: ImageRequest,
    source: ImageSource,
    *,
    default_python: Path,
    has_kserve: bool,
) -> Program | NoStandIn:
    """Return the program for an image that is mapped to local source.

    Docker's rules: the Pod's command replaces the image's; with a command from the image the Pod's
    args are appended; a Pod command without an image command needs nothing else. `python` is
    `default_python`; so is a path to a Python in the Pod's command, which means the image's own.
    A path in `kserve-local.yaml` means the file on this machine.

    Args:
        default_python: What `python` means here.
        has_kserve: That interpreter can import `kserve`, so a zygote may have it imported already.
    """
    words = (*(request.command or source.command), *request.args)
    if not words:
        return NoStandIn(
            f'kserve-local.yaml: images."{request.image}" has no command and the Pod gives none; '
            "add command: [python, model.py]"
        )
    first = PurePosixPath(words[0])
    argv, is_python = words, True
    python = source.python or (None if source.requirements else default_python)
    requirements = source.requirements
    preload = has_kserve
    named = None if request.command else _named_interpreter(source, words[0])
    if named is not None:
        argv, python, requirements = words[1:], named, None
        preload = has_kserve and named == default_python
        if not (named.is_file() and os.access(named, os.X_OK)):
            # Started as it stands, so that it fails as it would in a container.
            argv, python, is_python = words, None, False
    elif _PYTHON.fullmatch(first.name):
        argv = words[1:]
    elif first.suffix != ".py":
        is_python, python = False, source.python
    argv = tuple(a for a in argv if a != "-u") if is_python and argv[:1] == ("-u",) else argv
    preload = preload and is_python and _entry_imports_kserve(source, argv)
    return Program(
        kind="source",
        runtime=request.image,
        argv=argv,
        python=python,
        requirements=requirements,
        cwd=source.context,
        preload=("kserve",) if preload else (),
        is_python=is_python,
    )


def stand_in(request: ImageRequest, *, runtime: RuntimeConfig | None = None) -> StandIn | NoStandIn:
    """Return the program of ours that stands in for the image, or why there is none."""
    found = _stand_in(request)
    if isinstance(found, NoStandIn):
        way_out = found.next_step or _way_out(request.image)
        return NoStandIn(
            f'Container image "{request.image}" cannot run here: {found.message}. '
            f"{way_out[0].upper()}{way_out[1:]}"
        )
    server, args = found
    return StandIn(
        _program(server, args, runtime, _preload(server, request.model_files)),
        note=f"{server} of kserve-local stands in for image {request.image}",
    )
