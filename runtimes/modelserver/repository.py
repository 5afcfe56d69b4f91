"""Finds model files: one file in `--model_dir` makes a single-model server; none, but
sub-directories, a server of several models. Texts and rules are those of
KServe's framework servers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelserver.errors import LoadError
from modelserver.model import Model

ModelFactory = Callable[[str, Path], Model]


def local_path(model_dir: str) -> Path:
    """Return the local directory (or file) that `--model_dir` names.

    Raises:
        LoadError: It is a URI that only a storage initializer can fetch.
    """
    scheme, separator, _ = model_dir.partition("://")
    if not separator:
        return Path(model_dir)
    if scheme == "file":
        return Path(unquote(urlsplit(model_dir).path))
    raise LoadError(
        f"model_dir {model_dir} is not local; a storage initializer has to fetch it first "
        "(kserve-local and KServe do that from storageUri)"
    )


def model_files(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """Return the model files directly under `folder` (or `folder` itself if it is one), sorted.

    Raises:
        LoadError: There is no such folder.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise LoadError(f"Local path ('{folder}') does not exist.")
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in extensions)


def one_model_file(folder: Path, extensions: Sequence[str]) -> Path:
    """Return the only model file of `folder`.

    Raises:
        LoadError: There is none, or more than one.
    """
    files = model_files(folder, extensions)
    if not files:
        raise LoadError(
            f"Missing Model File: no file with extension {', '.join(extensions)} in {folder}"
        )
    if len(files) > 1:
        raise LoadError(
            "More than one model file is detected, "
            f"Only one is allowed within model_dir: {[str(path) for path in files]}"
        )
    return files[0]


class Repository:
    """Every sub-directory of a folder is a model of that name (`dataplane.ModelRepository`)."""

    def __init__(self, folder: Path, factory: ModelFactory) -> None:
        self._folder = folder
        self._factory = factory

    def names(self) -> list[str]:
        """Return the names of all sub-directories, sorted."""
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir())

    def create(self, name: str) -> Model:
        """Return the (not yet loaded) model in the sub-directory `name`.

        Raises:
            LoadError: `name` is no plain name of a sub-directory.
        """
        folder = self._folder / name
        if name in ("", ".", "..") or "/" in name or not folder.is_dir():
            raise LoadError(f"no model directory {name} in {self._folder}")
        return self._factory(name, folder)


def open_models(
    model_dir: str, model_name: str, extensions: Sequence[str], factory: ModelFactory
) -> tuple[list[Model], Repository | None]:
    """Return the models to load at start, and the repository of a server of several models.

    Raises:
        LoadError: The directory is missing, or holds several model files.
    """
    folder = local_path(model_dir)
    files = model_files(folder, extensions)
    if files:
        one_model_file(folder, extensions)
        return [factory(model_name, folder)], None
    repository = Repository(folder, factory)
    return [repository.create(name) for name in repository.names()], repository
