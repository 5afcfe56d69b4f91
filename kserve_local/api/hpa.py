"""What the API server makes of a HorizontalPodAutoscaler's empty `behavior`. Pure data.

Source: Kubernetes 1.33, pkg/apis/autoscaling/v2/defaults.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PERCENT = {"type": "Percent", "value": 100, "periodSeconds": 15}
DEFAULT_BEHAVIOR: Mapping[str, Any] = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}, _PERCENT],
    },
    "scaleDown": {"selectPolicy": "Max", "policies": [_PERCENT]},
}
