"""The properties of parsers that take a stranger's bytes, tried for minutes instead of seconds.

    python -m tests.soak.fuzz [--minutes 10] [NAME...]

Runs hypothesis over the properties of the unit tests, with new examples each time; the first that
fails is shown, shrunk, and ends the run.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

EXAMPLES = 2000
TARGETS: dict[str, tuple[str, ...]] = {
    "http2": (
        "tests.unit.gateway.test_h2:test_a_connection_stands_whatever_comes",
        "tests.unit.gateway.test_h2:test_any_block_is_read_or_refused",
        "tests.unit.gateway.test_h2:test_what_an_encoder_writes_is_read_also_from_memory",
        "tests.unit.gateway.test_h2:test_any_headers_are_a_request_or_malformed",
        "tests.unit.gateway.test_h2:test_frames_read_the_same_however_they_are_cut",
    ),
    "tensors": (
        "tests.unit.modelserver.test_oip:test_any_binary_request_is_read_or_refused",
        "tests.unit.modelserver.test_tensors:test_bytes_travel_as_length_prefixed_utf8",
        "tests.unit.modelserver.test_oip_grpc:test_raw_tensors_survive_both_ways_bit_by_bit",
    ),
    "conditions": (
        "tests.unit.gateway.test_gjson:test_no_path_raises_on_valid_json",
        "tests.unit.gateway.test_gjson:test_no_path_raises_on_anything_else",
        "tests.unit.gateway.test_gjson:test_every_key_is_reached_by_its_escaped_name",
        "tests.unit.gateway.test_graph:test_any_condition_on_any_body_is_decided",
    ),
}


def load(name: str) -> Callable[[], Any]:
    """Return a property; it tries as many new examples as the profile says, or it does itself."""
    module, _, function = name.partition(":")
    found: Callable[[], Any] = getattr(importlib.import_module(module), function)
    return found


def main() -> int:
    """Try each target for the time it has; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args()
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    settings.register_profile(
        "fuzz", max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=slow
    )
    # Before the properties are imported: they take what is the default then.
    settings.load_profile("fuzz")
    for target in args.names or TARGETS:
        properties = [load(name) for name in TARGETS[target]]
        until = time.monotonic() + 60 * args.minutes
        rounds = 0
        while time.monotonic() < until:
            for each in properties:
                each()
            rounds += 1
        print(
            f"{target}: nothing found in {args.minutes:g} min: {rounds} rounds of "
            f"{len(properties)} properties, {EXAMPLES} examples each at most",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
