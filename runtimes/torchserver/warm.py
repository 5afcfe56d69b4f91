"""Warm-up for a zygote of torchserver replicas, see `modelserver.warm`.

Importing PyTorch takes seconds; forking a process that did takes milliseconds. Nothing is computed
here and no GPU is touched: a thread pool or a CUDA context would not survive the fork.
"""

from __future__ import annotations

import importlib

import torch

import torchserver.server
import torchserver.torchserve  # noqa: F401  imported for the forked servers
from modelserver import warm as modelserver_warm

# What `torch.export.load` imports on its first use, as long as all of PyTorch itself again.
_EXPORT = (
    "torch.export",
    "torch._export.serde.serialize",
    "torch.export._trace",
    "torch._meta_registrations",
    "torch._functorch.aot_autograd",
)


def warm() -> None:
    """Import PyTorch on one thread, run a throw-away event loop."""
    torch.set_num_threads(1)
    modelserver_warm.warm()


def warm_export() -> None:
    """`warm`, and what exported programs (`.pt2`) need besides."""
    for name in _EXPORT:
        try:
            importlib.import_module(name)
        except ImportError:  # a private module may move; the first load then takes longer
            continue
    warm()
