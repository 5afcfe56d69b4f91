"""The messages of `inference.GRPCInferenceService`, made at run time from their field numbers.

Generated code checks the protobuf version it was generated for, and registers its names for the
whole process. These classes do neither: they work with any protobuf and live in a pool of their
own, so that a model may import the kserve SDK or tritonclient, which bring the same names.
`oip.proto` says the same for readers and other tools. Source: field numbers of the Open Inference
Protocol and of KServe's repository calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)

_MODEL = "string name 1, string version 2"
_TENSOR_METADATA = "string name 1, string datatype 2, int64* shape 3"
_TENSOR = f"{_TENSOR_METADATA}, map parameters 4, InferTensorContents contents 5"
_CALL = "string model_name 1, string model_version 2, string id 3, map parameters 4"

# `TYPE NAME NUMBER` per field. `*` is repeated, `|` a member of the oneof `parameter_choice`, `map`
# is map<string, InferParameter>; a nested message has the name of the one around it and a dot.
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready 1",
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": "bool ready 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name 1, string version 2, string* extensions 3",
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": (
        "string name 1, string* versions 2, string platform 3, "
        "ModelMetadataResponse.TensorMetadata* inputs 4, "
        "ModelMetadataResponse.TensorMetadata* outputs 5"
    ),
    "ModelMetadataResponse.TensorMetadata": _TENSOR_METADATA,
    "ModelInferRequest": (
        f"{_CALL}, ModelInferRequest.InferInputTensor* inputs 5, "
        "ModelInferRequest.InferRequestedOutputTensor* outputs 6, bytes* raw_input_contents 7"
    ),
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": "string name 1, map parameters 2",
    "ModelInferResponse": (
        f"{_CALL}, ModelInferResponse.InferOutputTensor* outputs 5, bytes* raw_output_contents 6"
    ),
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "InferParameter": "bool| bool_param 1, int64| int64_param 2, string| string_param 3",
    "InferTensorContents": (
        "bool* bool_contents 1, int32* int_contents 2, int64* int64_contents 3, "
        "uint32* uint_contents 4, uint64* uint64_contents 5, float* fp32_contents 6, "
        "double* fp64_contents 7, bytes* bytes_contents 8"
    ),
    "RepositoryModelLoadRequest": "string model_name 1",
    "RepositoryModelLoadResponse": "string model_name 1, bool isLoaded 2",
    "RepositoryModelUnloadRequest": "string model_name 1",
    "RepositoryModelUnloadResponse": "string model_name 1, bool isUnloaded 2",
}

_SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def file_descriptor() -> FileDescriptorProto:
    """Return the description of the file that `oip.proto` is."""
    file = FileDescriptorProto(name="modelserver/oip.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for name, text in _MESSAGES.items():
        around, _, own = name.rpartition(".")
        message = made[around].nested_type.add() if around else file.message_type.add()
        made[name] = message
        message.name = own
        for kind, field, number in _fields(text):
            _add_field(message, name, kind, field, number)
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for name in METHODS:
        request, response = f".{PACKAGE}.{name}Request", f".{PACKAGE}.{name}Response"
        service.method.append(
            MethodDescriptorProto(name=name, input_type=request, output_type=response)
        )
    return file


def _fields(text: str) -> Iterator[tuple[str, str, int]]:
    for part in filter(None, text.split(", ")):
        kind, name, number = part.split()
        yield kind, name, int(number)


def _add_field(message: Any, around: str, kind: str, name: str, number: int) -> None:
    field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind.endswith("*"):
        field.label = FieldDescriptorProto.LABEL_REPEATED
    elif kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    kind = kind.rstrip("*|")
    if kind == "map":
        # A map is a repeated message of key and value that is marked as one.
        field.label = FieldDescriptorProto.LABEL_REPEATED
        kind = f"{around}.{name.capitalize()}Entry"
        entry = message.nested_type.add(name=kind.rpartition(".")[2])
        entry.options.map_entry = True
        _add_field(entry, kind, "string", "key", 1)
        _add_field(entry, kind, "InferParameter", "value", 2)
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"


def _classes() -> dict[str, Any]:
    pool = DescriptorPool()
    pool.AddSerializedFile(file_descriptor().SerializeToString())
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


# The classes by name.
MESSAGES: dict[str, Any] = _classes()
