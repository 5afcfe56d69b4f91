"""Whether requests go straight to the replicas (Serve) or through the activator (Proxy). Pure.

Source: traffic.md 1.7; knative/serving pkg/reconciler/autoscaling/kpa/kpa.go.
"""

from __future__ import annotations

from typing import Literal

Mode = Literal["Serve", "Proxy"]


def mode_of(want: int, excess_burst_capacity: int, *, ready: int) -> Mode:
    """Return the path of a revision's requests.

    Args:
        want: Replicas after bounds and the way to zero; -1: not known yet.
        ready: Without a ready replica there is nothing to serve from, whatever is wanted.
    """
    return "Serve" if want > 0 and excess_burst_capacity >= 0 and ready > 0 else "Proxy"
