"""What gateway and callers agree on about recorded calls."""

from __future__ import annotations

REPLAY_HEADER = "x-kserve-local-replay"
"""Marks a recorded call that is sent again through the gateway: it is not recorded once more."""
REDACTED = "[redacted]"
"""What stands in a recorded call for a value of `requests.redactHeaders` and `redactFields`."""
