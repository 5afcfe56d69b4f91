"""Warm-up for a zygote of predictiveserver replicas: any of the three frameworks may be asked for,
but only scikit-learn, the default, is worth its memory before that is known.
"""

from __future__ import annotations

import predictiveserver.server  # noqa: F401  imported for the forked servers
from sklearnserver import warm as sklearn_warm


def warm() -> None:
    """Warm up as sklearnserver does."""
    sklearn_warm.warm()
