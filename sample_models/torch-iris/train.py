"""Train a small network on iris and save it as TorchScript. Seeded."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn import datasets


def main() -> None:
    """Write `model/model.pt` beside this file: FP32 [n, 4] in, class scores [n, 3] out."""
    torch.manual_seed(0)
    iris = datasets.load_iris()
    rows = torch.tensor(iris.data, dtype=torch.float32)
    labels = torch.tensor(iris.target)
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3), torch.nn.Softmax(dim=1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(torch.log(network(rows) + 1e-9), labels).backward()
        optimizer.step()
    folder = Path(__file__).parent / "model"
    folder.mkdir(exist_ok=True)
    exported = torch.export.export(
        network.eval(), (rows[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(exported, folder / "model.pt2")
    print(f"wrote {folder / 'model.pt2'}")


if __name__ == "__main__":
    main()
