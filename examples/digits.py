"""Train a digit classifier with nn.Sigmoid and with sigmoid_op.Sigmoid, and compare losses and accuracy.

    python examples/digits.py [--steps 300] [--device cuda] [--out FOLDER]

Two networks of the same weights see the same batches of scikit-learn's 1,797 handwritten digits. Where both run
PyTorch's operators, on a CPU, their losses agree bit for bit; where our kernels run, to a thousandth. Takes seconds.
"""

import argparse
import copy
import json
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":

    def end_at_once(*_: object) -> None:  # by Ctrl-C during the imports
        os.write(2, b"Interrupted: nothing is kept\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end_at_once)

os.environ.setdefault("SIGMOID_OP_MIN_ELEMENTS", "1")  # so that these small tensors take the kernels, too

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import sigmoid_op

BATCH, HIDDEN = 128, 256
stopped: list[bool] = []  # by Ctrl-C: the step that runs is the last


def train(models: dict[str, nn.Module], x: Tensor, y: Tensor, steps: int) -> dict[str, list[float]]:
    """The losses of each model. They are trained in turn, batch by batch."""
    losses: dict[str, list[float]] = {name: [] for name in models}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=3e-3) for name, model in models.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
        for name, model in models.items():
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            losses[name].append(loss.item())
        if stopped:
            break
    return losses


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
    images, classes = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, classes, test_size=0.2, random_state=0, stratify=classes)
    x, x_test, y, y_test = (torch.tensor(part, device=args.device) for part in parts)
    theirs = nn.Sequential(
        nn.Linear(64, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, 10)
    ).to(args.device)
    ours = copy.deepcopy(theirs)
    ours[1], ours[3] = sigmoid_op.Sigmoid(), sigmoid_op.Sigmoid()
    models: dict[str, nn.Module] = {"nn.Sigmoid": theirs, "sigmoid_op.Sigmoid": ours}
    losses = train(models, x.float(), y, args.steps)
    accuracy = {}
    for name, model in models.items():
        with torch.no_grad():
            accuracy[name] = float((model(x_test.float()).argmax(1) == y_test).double().mean())
        print(f"{name:20} last loss {losses[name][-1]:.6f}, test accuracy {accuracy[name]:.3f}")
    difference = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    on_kernels = args.device != "cpu" or bool(os.environ.get("TRITON_INTERPRET"))
    agree = difference <= (1e-3 if on_kernels else 0.0)  # so that NaN disagrees
    print(f"losses {'agree' if agree else 'DIFFER'}: by at most {difference:.3g}")
    status = "interrupted" if stopped else "complete"
    if args.out:
        where = {"torch": torch.__version__, "device": args.device}
        record = {"schema": 1, "kind": "digits", "environment": where, "status": status}
        path = args.out / "digits.json"
        path.write_text(json.dumps({**record, "accuracy": accuracy, "losses": losses}))
        print(f"Results in {path} ({status})")
    return 130 if stopped else int(not agree)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    sys.exit(main())
