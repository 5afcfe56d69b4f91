"""What gateway and callers agree on about recorded calls."""

from __future__ import annotations

REPLAY_HEADER = "x-kserve-local-replay"
"""Marks a recorded call that is sent again through the gateway: it is not recorded once more."""
REPLAY_ID = "kserve-local-replay-"
REPLAY_TRACE = "6b736c7265706c79"
"""How its `x-request-id` and its trace id begin. A transformer passes the one on to its predictor,
a graph the other to its steps: what a replay causes is not recorded either."""
REDACTED = "[redacted]"
"""What stands in a recorded call for a value of `requests.redactHeaders` and `redactFields`."""
