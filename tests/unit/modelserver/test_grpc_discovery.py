"""Reflection's answers, question by question."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from modelserver import grpc_discovery as discovery

Asked = discovery.message("grpc.reflection.v1.ServerReflectionRequest")


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("inference.ModelInferRequest", "modelserver/oip.proto"),
        ("inference.ModelInferRequest.InferInputTensor", "modelserver/oip.proto"),
        ("inference.GRPCInferenceService.ModelInfer", "modelserver/oip.proto"),
        ("grpc.health.v1.Health", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
    ],
)
def test_a_symbol_leads_to_its_file(symbol: str, file: str) -> None:
    answer = discovery.reflected(Asked(file_containing_symbol=symbol))
    (found,) = answer.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(found).name == file
    by_name = discovery.reflected(Asked(file_by_filename=file))
    assert list(by_name.file_descriptor_response.file_descriptor_proto) == [found]


@pytest.mark.parametrize(
    ("question", "code"),
    [
        (Asked(file_containing_symbol="inference.Nope"), 5),
        (Asked(file_by_filename="nope.proto"), 5),
        (Asked(all_extension_numbers_of_type="inference.Nope"), 5),
        (Asked(host="h"), 3),
    ],
)
def test_what_is_not_there_is_an_error(question: object, code: int) -> None:
    answer = discovery.reflected(question)
    assert answer.error_response.error_code == code
    assert answer.original_request == question


def test_a_known_type_has_no_extensions() -> None:
    answer = discovery.reflected(Asked(all_extension_numbers_of_type="inference.InferParameter"))
    assert answer.all_extension_numbers_response.base_type_name == "inference.InferParameter"


def test_the_files_are_whole() -> None:
    """Each can be read without the others, as a client that asks for one does."""
    for file in discovery.FILES:
        DescriptorPool().AddSerializedFile(file.SerializeToString())
