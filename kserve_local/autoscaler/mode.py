"""Whether requests go straight to the replicas (Serve) or through the activator (Proxy). Pure.

Source: traffic.md 1.7; knative/serving pkg/reconciler/autoscaling/kpa/kpa.go.
"""

from __future__ import annotations

from typing import Literal

Mode = Literal["Serve", "Proxy"]


def mode_of(want: int, excess_burst_capacity: int, *, ready: int, inactive: bool) -> Mode:
    """Return the path of a revision's requests.

    Args:
        want: Replicas after bounds and the way to zero; -1: not known yet.
        inactive: The revision was scaled to zero, or is on its way there; says where it stands
            while `want` is not known.
    """
    if want == 0 or (want < 0 and inactive) or ready == 0 or excess_burst_capacity < 0:
        return "Proxy"
    return "Serve"
