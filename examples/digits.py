"""Train a digit classifier with nn.Sigmoid and with sigmoid_op.Sigmoid, and compare losses and accuracy.

    python examples/digits.py [--steps 300] [--device cuda] [--out FOLDER]

Two networks of the same weights see the same batches of scikit-learn's 1,797 handwritten digits. Where both run
PyTorch's operators, on a CPU, their losses agree bit for bit; where our kernels run, to a thousandth. Takes seconds.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("SIGMOID_OP_MIN_ELEMENTS", "1")  # so that these small tensors take the kernels, too

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import sigmoid_op

BATCH, HIDDEN = 128, 256
History = dict[str, dict[str, list[float]]]


def digits(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of 64 pixels and their classes, for training and for the test."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.2, random_state=0, stratify=y)
    x_train, x_test = (torch.tensor(part, dtype=torch.float32, device=device) for part in parts[:2])
    y_train, y_test = (torch.tensor(part, device=device) for part in parts[2:])
    return x_train, x_test, y_train, y_test


def train(models: dict[str, nn.Module], history: History, x: Tensor, y: Tensor, steps: int) -> None:
    """Train the models in turn, batch by batch, adding losses and step times in ms to ``history``."""
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=3e-3) for name, model in models.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
        for name, model in models.items():
            start = time.perf_counter()
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            history[name]["losses"].append(loss.item())  # waits for the device
            history[name]["step_ms"].append(1e3 * (time.perf_counter() - start))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for digits.json")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x_train, x_test, y_train, y_test = digits(args.device)
    theirs = nn.Sequential(
        nn.Linear(64, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, 10)
    ).to(args.device)
    ours = copy.deepcopy(theirs)
    ours[1], ours[3] = sigmoid_op.Sigmoid(), sigmoid_op.Sigmoid()
    models: dict[str, nn.Module] = {"nn.Sigmoid": theirs, "sigmoid_op.Sigmoid": ours}
    history: History = {name: {"losses": [], "step_ms": []} for name in models}
    status = "complete"
    try:
        train(models, history, x_train, y_train, args.steps)
    except KeyboardInterrupt:
        status = f"interrupted after {len(history['sigmoid_op.Sigmoid']['losses'])} steps"
        if not history["sigmoid_op.Sigmoid"]["losses"]:
            return 130
    accuracy = {}
    for name, model in models.items():
        with torch.no_grad():
            accuracy[name] = float((model(x_test).argmax(1) == y_test).double().mean())
        losses, step_ms = history[name]["losses"], history[name]["step_ms"]
        print(
            f"{name:20} last loss {losses[-1]:.6f}, test accuracy {accuracy[name]:.3f}, "
            f"step {statistics.median(step_ms):.2f} ms"
        )
    pairs = zip(*(of["losses"] for of in history.values()), strict=False)
    difference = max(abs(a - b) for a, b in pairs)
    on_kernels = args.device != "cpu" or bool(os.environ.get("TRITON_INTERPRET"))
    agree = difference <= (1e-3 if on_kernels else 0.0)  # so that NaN disagrees
    print(f"losses {'agree' if agree else 'DIFFER'}: by at most {difference:.3g}")
    if args.out:
        where = {"torch": torch.__version__, "device": args.device}
        record = {"schema": 1, "kind": "digits", "environment": where, "status": status, "accuracy": accuracy}
        path = args.out / "digits.json"
        path.write_text(json.dumps({**record, "histories": history}))
        print(f"Results in {path} ({status})")
    return 130 if status != "complete" else int(not agree)


if __name__ == "__main__":
    sys.exit(main())
