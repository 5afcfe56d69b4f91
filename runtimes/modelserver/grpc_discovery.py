"""`grpc.health.v1.Health` and `grpc.reflection.v1.ServerReflection` of a model server.

KServe's server has neither; probes of kind `grpc` and tools such as grpcurl want them. The older
`v1alpha` of reflection stays unknown, as KServe's recorded answer has it. Messages are made from
their field numbers, as in `oip_proto`. Source: grpc/health/v1/health.proto and
grpc/reflection/v1/reflection.proto, field numbers only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import (
    EnumDescriptorProto,
    EnumValueDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from modelserver import oip_proto
from modelserver.dataplane import DataPlane
from modelserver.errors import ModelNotFound

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
_LOOK = 1.0
"""Seconds between looks at a model whose health somebody watches."""

# As in `oip_proto`; after a `|` the name of the oneof.
_HEALTH = {
    "HealthCheckRequest": "string service 1",
    "HealthCheckResponse": "ServingStatus status 1",
}
_STATUS = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_REFLECTION = {
    "ServerReflectionRequest": (
        "string host 1, string|message_request file_by_filename 3, "
        "string|message_request file_containing_symbol 4, "
        "ExtensionRequest|message_request file_containing_extension 5, "
        "string|message_request all_extension_numbers_of_type 6, "
        "string|message_request list_services 7"
    ),
    "ExtensionRequest": "string containing_type 1, int32 extension_number 2",
    "ServerReflectionResponse": (
        "string valid_host 1, ServerReflectionRequest original_request 2, "
        "FileDescriptorResponse|message_response file_descriptor_response 4, "
        "ExtensionNumberResponse|message_response all_extension_numbers_response 5, "
        "ListServiceResponse|message_response list_services_response 6, "
        "ErrorResponse|message_response error_response 7"
    ),
    "FileDescriptorResponse": "bytes* file_descriptor_proto 1",
    "ExtensionNumberResponse": "string base_type_name 1, int32* extension_number 2",
    "ListServiceResponse": "ServiceResponse* service 1",
    "ServiceResponse": "string name 1",
    "ErrorResponse": "int32 error_code 1, string error_message 2",
}
_SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("int32", "string", "bytes")
}


def _file(name: str, package: str, messages: dict[str, str]) -> FileDescriptorProto:
    file = FileDescriptorProto(name=name, package=package, syntax="proto3")
    for message_name, text in messages.items():
        message = file.message_type.add(name=message_name)
        oneofs: dict[str, int] = {}
        for part in text.split(", "):
            kind, field_name, number = part.split()
            kind, _, oneof = kind.partition("|")
            field = message.field.add(name=field_name, number=int(number))
            repeated = kind.endswith("*")
            field.label = (
                FieldDescriptorProto.LABEL_REPEATED
                if repeated
                else FieldDescriptorProto.LABEL_OPTIONAL
            )
            kind = kind.rstrip("*")
            if oneof:
                if oneof not in oneofs:
                    oneofs[oneof] = len(oneofs)
                    message.oneof_decl.add(name=oneof)
                field.oneof_index = oneofs[oneof]
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            elif kind == "ServingStatus":
                field.type = FieldDescriptorProto.TYPE_ENUM
                field.type_name = f".{package}.{message_name}.{kind}"
                message.enum_type.append(
                    EnumDescriptorProto(
                        name=kind,
                        value=[
                            EnumValueDescriptorProto(name=value, number=n)
                            for n, value in enumerate(_STATUS)
                        ],
                    )
                )
            else:
                field.type = FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{package}.{kind}"
    return file


def _files() -> list[FileDescriptorProto]:
    health_package, reflection_package = HEALTH.rpartition(".")[0], REFLECTION.rpartition(".")[0]
    health = _file("grpc/health/v1/health.proto", health_package, _HEALTH)
    asks, tells = (f".{health_package}.{name}" for name in _HEALTH)
    health.service.add(
        name="Health",
        method=[
            MethodDescriptorProto(name="Check", input_type=asks, output_type=tells),
            MethodDescriptorProto(
                name="Watch", input_type=asks, output_type=tells, server_streaming=True
            ),
        ],
    )
    reflection = _file("grpc/reflection/v1/reflection.proto", reflection_package, _REFLECTION)
    reflection.service.add(
        name="ServerReflection",
        method=[
            MethodDescriptorProto(
                name="ServerReflectionInfo",
                input_type=f".{reflection_package}.ServerReflectionRequest",
                output_type=f".{reflection_package}.ServerReflectionResponse",
                client_streaming=True,
                server_streaming=True,
            )
        ],
    )
    return [oip_proto.file_descriptor(), health, reflection]


FILES = _files()
_POOL = DescriptorPool()
for _each in FILES:
    _POOL.AddSerializedFile(_each.SerializeToString())


def message(name: str) -> Any:
    """Return the class of a message by its full name."""
    return GetMessageClass(_POOL.FindMessageTypeByName(name))


_CheckRequest = message("grpc.health.v1.HealthCheckRequest")
_CheckResponse = message("grpc.health.v1.HealthCheckResponse")
_Asked = message("grpc.reflection.v1.ServerReflectionRequest")
_Told = message("grpc.reflection.v1.ServerReflectionResponse")


class Discovery:
    """Answers about the server itself.

    Args:
        dataplane: Its models: each is a service whose health can be asked, by its name.
    """

    def __init__(self, dataplane: DataPlane) -> None:
        self._data = dataplane

    def handlers(self) -> tuple[Any, ...]:
        """Return the services as grpcio takes them."""
        return (
            grpc.method_handlers_generic_handler(
                HEALTH,
                {
                    "Check": grpc.unary_unary_rpc_method_handler(
                        self._check, _CheckRequest.FromString, _CheckResponse.SerializeToString
                    ),
                    "Watch": grpc.unary_stream_rpc_method_handler(
                        self._watch, _CheckRequest.FromString, _CheckResponse.SerializeToString
                    ),
                },
            ),
            grpc.method_handlers_generic_handler(
                REFLECTION,
                {
                    "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                        self._reflect, _Asked.FromString, _Told.SerializeToString
                    )
                },
            ),
        )

    def _status(self, service: str) -> int:
        """Return the health of the server (no name, or a service's), or of a model."""
        if service in ("", oip_proto.SERVICE, HEALTH, REFLECTION):
            return SERVING
        try:
            return SERVING if self._data.get(service).model.healthy() else NOT_SERVING
        except ModelNotFound:
            return SERVICE_UNKNOWN

    async def _check(self, request: Any, context: Any) -> Any:
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            text = f"no service and no model {request.service!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        return _CheckResponse(status=status)

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        before = None
        while True:
            status = self._status(request.service)
            if status != before:
                before = status
                yield _CheckResponse(status=status)
            await asyncio.sleep(_LOOK)

    async def _reflect(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield reflected(request)


def reflected(request: Any) -> Any:
    """Return the answer to one question of reflection. Pure."""
    answer = _Told(valid_host=request.host, original_request=request)
    asked = request.WhichOneof("message_request")
    if asked == "list_services":
        for file in FILES:
            for service in file.service:
                answer.list_services_response.service.add(name=f"{file.package}.{service.name}")
        return answer
    file = None
    if asked == "file_by_filename":
        file = next((f for f in FILES if f.name == request.file_by_filename), None)
    elif asked == "file_containing_symbol":
        file = _file_of(request.file_containing_symbol)
    if file is not None:
        answer.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())
        return answer
    if asked == "all_extension_numbers_of_type":
        base = request.all_extension_numbers_of_type
        if _file_of(base) is not None:
            answer.all_extension_numbers_response.base_type_name = base
            return answer
    code = grpc.StatusCode.NOT_FOUND if asked else grpc.StatusCode.INVALID_ARGUMENT
    answer.error_response.error_code = code.value[0]
    answer.error_response.error_message = "not found" if asked else "nothing was asked"
    return answer


def _file_of(symbol: str) -> FileDescriptorProto | None:
    """Return the file that defines a message, an enum, a service or a method of these names."""
    for file in FILES:
        names = set()
        for made in file.message_type:
            own = f"{file.package}.{made.name}"
            names |= {own, *(f"{own}.{n.name}" for n in (*made.nested_type, *made.enum_type))}
        for service in file.service:
            own = f"{file.package}.{service.name}"
            names |= {own, *(f"{own}.{method.name}" for method in service.method)}
        if symbol in names:
            return file
    return None
