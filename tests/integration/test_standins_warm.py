"""What a zygote of torchserver imports leaves one thread, no GPU context, and forks that serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

PROGRAM = """
import json, os, sys, time
from torchserver.warm import warm_export
warm_export()
import torch
told = {"threads": len(os.listdir("/proc/self/task")), "cuda": torch.cuda.is_initialized()}
before = set(sys.modules)
read, write = os.pipe()
if os.fork() == 0:
    from pathlib import Path
    from modelserver.model import InferInput, InferRequest
    from torchserver.model import TorchModel
    os.environ["OMP_NUM_THREADS"] = "2"
    model = TorchModel("m", Path(sys.argv[1]))
    model.load()
    ones = InferInput("x", [1, 2], "FP32", [1, 1])
    got = model.predict(InferRequest("m", [ones])).outputs[0].data.tolist()
    new = [m for m in set(sys.modules) - before if m.startswith("torch.")]
    os.write(write, json.dumps([got, torch.get_num_threads(), len(new)]).encode())
    os._exit(0)
os.close(write)
os.wait()
told["fork"] = json.loads(os.read(read, 65536))
print(json.dumps(told))
"""


def test_a_zygote_with_torch_forks_servers_of_exported_programs(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(0.5)
    torch.export.save(
        torch.export.export(layer.eval(), (torch.ones(1, 2),)), tmp_path / "model.pt2"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "model.pt2")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told = json.loads(done.stdout)
    answer, threads, imported = told["fork"]
    assert (told["threads"], told["cuda"]) == (1, False)
    assert (answer, threads) == ([[2.5]], 2)
    # Loading imports hundreds of modules without the warm-up.
    assert imported < 50
