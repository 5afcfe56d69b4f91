"""`ts.torch_handler.base_handler.BaseHandler` for handlers that subclass it, without TorchServe.

The documented behaviour: `initialize` loads TorchScript, or a class file with its state dict;
`handle` runs `preprocess`, `inference`, `postprocess`, each of which a subclass may replace.
Attribute and method names are TorchServe's, the code is ours. What it does not do: ONNX, TensorRT
and compiled shared objects, IPEX, XLA, the profiler; `pt2` compile options are ignored with a line
in the log.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

import torch

from modelserver.errors import LoadError
from torchserver.context import Context
from torchserver.loading import load_script, load_state
from torchserver.ts_modules import list_classes_from_module, load_label_mapping

logger = logging.getLogger(__name__)


class BaseHandler:
    """Load a model, answer lists of rows."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, Any] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: Any = None
        self.map_location: str | None = None
        self.explain = False
        self.target: Any = 0
        self.profiler_args: dict[str, Any] = {}
        self.model_yaml_config: dict[str, Any] = {}

    def initialize(self, context: Context) -> None:
        """Load the model that the manifest names onto the worker's device.

        Raises:
            LoadError: The file is neither TorchScript nor weights of the class file.
            RuntimeError: The manifest names neither weights nor a class file.
        """
        self.context = context
        self.manifest = context.manifest
        self.model_yaml_config = context.model_yaml_config
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        self.map_location = "cuda" if torch.cuda.is_available() and gpu is not None else "cpu"
        place = f"cuda:{gpu}" if self.map_location == "cuda" else "cpu"
        self.device = torch.device(place)
        folder = str(properties["model_dir"])
        model = self.manifest["model"]
        if model.get("serializedFile"):
            self.model_pt_path = os.path.join(folder, model["serializedFile"])
        if model.get("modelFile"):
            self.model = self._load_pickled_model(folder, model["modelFile"], self.model_pt_path)
            self.model.to(self.device)
        elif self.model_pt_path is None:
            raise RuntimeError("the manifest names neither serializedFile nor modelFile")
        elif self.model_pt_path.endswith((".pt", ".pth", ".pt2", ".torchscript")):
            self.model = self._load_torchscript_model(self.model_pt_path)
        else:
            raise LoadError(
                f"{os.path.basename(self.model_pt_path)}: only TorchScript, or weights with a "
                "modelFile, are served here"
            )
        # An exported program has no modes to change.
        if hasattr(self.model, "eval") and not self.model_pt_path_is_export():
            self.model.eval()
        if self.model_yaml_config.get("pt2"):
            logger.warning("pt2 options of the model's configuration are ignored: no compilation")
        self.mapping = load_label_mapping(os.path.join(folder, "index_to_name.json"))
        self.initialized = True

    def model_pt_path_is_export(self) -> bool:
        """Return whether the weights are an exported program."""
        return bool(self.model_pt_path and self.model_pt_path.endswith(".pt2"))

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        return load_script(model_pt_path, str(self.device))

    def _load_pickled_model(
        self, model_dir: str, model_file: str, model_pt_path: str | None
    ) -> Any:
        if not os.path.isfile(os.path.join(model_dir, model_file)):
            raise RuntimeError(f"the archive holds no {model_file}")
        module = importlib.import_module(model_file.split(".", 1)[0])
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            names = ", ".join(c.__name__ for c in classes) or "none"
            raise ValueError(f"{model_file} must define exactly one class; there: {names}")
        made = classes[0]()
        if model_pt_path:
            load_state(made, model_pt_path, str(self.device))
        return made

    def preprocess(self, data: Any) -> Any:
        """Return the rows as one tensor."""
        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the model makes of the tensor."""
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> Any:
        """Return the answer to each row."""
        return data.tolist()

    def handle(self, data: Any, context: Context) -> Any:
        """Answer the rows of a request; its metadata or its explanation if that is asked for."""
        self.context = context
        if self._is_describe():
            return [self.describe_handle()]
        prepared = self.preprocess(data)
        if self._is_explain():
            return self.explain_handle(prepared, data)
        return self.postprocess(self.inference(prepared))

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Return `get_insights`, which a subclass has to bring, of the first row."""
        row = raw_data[0]
        inputs, target = None, 0
        if isinstance(row, dict):
            inputs = row.get("data") or row.get("body")
            target = row.get("target") or 0
        return self.get_insights(data_preprocess, inputs, target)

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> Any:
        """Explain; a subclass brings it."""
        raise NotImplementedError(f"{type(self).__name__} has no get_insights() to explain with")

    def describe_handle(self) -> Any:
        """Return metadata of the model; a subclass may bring it."""
        return None

    def _is_explain(self) -> bool:
        return bool(self.context.get_request_header(0, "explain") == "True")

    def _is_describe(self) -> bool:
        return bool(self.context.get_request_header(0, "describe") == "True")
