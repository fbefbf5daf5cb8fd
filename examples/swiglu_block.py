"""Train a SwiGLU feed-forward block by PyTorch's operators and by sigmoid_op.swiglu, and compare.

    python examples/swiglu_block.py [--steps 100] [--features 256] [--device cuda] [--out FOLDER]

The block of Llama and others, with gate and up projected by one merged matrix: sigmoid_op.swiglu reads the halves of
its result in place and saves them alone for backward, where PyTorch's form saves silu(gate), too. It learns a random
rotation of its input; in bfloat16 on CUDA. Takes seconds.
"""

import argparse
import copy
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":

    def end_at_once(*_: object) -> None:  # by Ctrl-C during the imports
        os.write(2, b"Interrupted: nothing is kept\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end_at_once)

os.environ.setdefault("SIGMOID_OP_MIN_ELEMENTS", "1")  # so that these small tensors take the kernels, too

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import swiglu

TOKENS = 512
stopped: list[bool] = []  # by Ctrl-C: the step that runs is the last
History = dict[str, dict[str, list[float]]]


class FeedForward(nn.Module):
    """x + W₂·(silu(gate)·up), where gate and up are the halves of W₁·norm(x)."""

    def __init__(self, features: int, hidden: int, fused: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(features)
        self.gate_and_up = nn.Linear(features, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, features, bias=False)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        packed = self.gate_and_up(self.norm(x))
        if self.fused:
            gated = swiglu(packed)
        else:
            gate, up = packed.chunk(2, -1)
            gated = F.silu(gate) * up
        out: Tensor = x + self.down(gated)
        return out


def train(models: dict[str, nn.Module], tokens: Tensor, target: Tensor, steps: int) -> History:
    """Train the models in turn; losses, step times in ms and peak memory in MiB."""
    history: History = {name: {"losses": [], "step_ms": [], "mib": []} for name in models}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-3) for name, model in models.items()}
    on_cuda = tokens.device.type == "cuda"
    for _ in range(steps):
        for name, model in models.items():
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if on_cuda else 0
            start = time.perf_counter()
            loss = F.mse_loss(model(tokens).float(), target)
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            history[name]["losses"].append(loss.item())  # waits for the device
            history[name]["step_ms"].append(1e3 * (time.perf_counter() - start))
            history[name]["mib"].append((torch.cuda.max_memory_allocated() - before) / 2**20 if on_cuda else 0.0)
            del loss
        if stopped:
            break
    return history


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for swiglu_block.json")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.device != "cpu" else torch.float32
    tokens = torch.randn(TOKENS, args.features)
    rotation, _ = torch.linalg.qr(torch.randn(args.features, args.features))
    target = (tokens @ rotation).to(args.device)
    tokens = tokens.to(args.device, dtype)
    theirs = FeedForward(args.features, args.features * 8 // 3, fused=False).to(args.device, dtype)
    ours = copy.deepcopy(theirs)
    ours.fused = True
    models: dict[str, nn.Module] = {"F.silu(gate) * up": theirs, "sigmoid_op.swiglu": ours}
    history = train(models, tokens, target, args.steps)
    for name, of in history.items():
        memory = f", at its highest {max(of['mib']):.1f} MiB more" if args.device != "cpu" else ""
        print(f"{name:20} last loss {of['losses'][-1]:.6f}, step {statistics.median(of['step_ms']):.2f} ms{memory}")
    difference = max(abs(a - b) / b for a, b in zip(*(of["losses"] for of in history.values()), strict=True))
    on_kernels = args.device != "cpu" or bool(os.environ.get("TRITON_INTERPRET"))
    agree = difference <= (0.02 if on_kernels else 0.0)  # bfloat16 rounds otherwise; NaN disagrees
    print(f"losses {'agree' if agree else 'DIFFER'}: by at most {difference:.2g} of PyTorch's")
    status = "interrupted" if stopped else "complete"
    if args.out:
        where = {"torch": torch.__version__, "device": args.device}
        record = {"schema": 1, "kind": "swiglu_block", "environment": where, "status": status}
        path = args.out / "swiglu_block.json"
        path.write_text(json.dumps({**record, "features": args.features, "histories": history}))
        print(f"Results in {path} ({status})")
    return 130 if stopped else int(not agree)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    sys.exit(main())
