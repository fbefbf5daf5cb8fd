"""Train networks in turn, step by step on the same batches: whatever slows the machine for a while slows them all."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

SEED = 0

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Learner:
    """A network, and the loss of (logits, targets) that it is to make small."""

    model: nn.Module
    loss: Loss


@dataclass
class Training:
    """Of every step, by the learner's name. ``gradient_norms``: of the gradients of all weights together.

    Adam takes no notice of a gradient that is off by a constant factor: the norms tell it, and the losses do not.
    ``peak_bytes``, on CUDA only: the memory that the last step added, at its highest.
    """

    losses: dict[str, list[float]]
    gradient_norms: dict[str, list[float]]
    step_ns: dict[str, list[float]]
    peak_bytes: dict[str, int]


def train(
    learners: Mapping[str, Learner], x: Tensor, y: Tensor, *, batch: int, steps: int, learning_rate: float, title: str
) -> Training:
    """Train all of them with Adam on (x, y); they take turns in going first."""
    device = x.device
    names = list(learners)
    optimizers = {name: Adam(learner.model.parameters(), lr=learning_rate) for name, learner in learners.items()}
    losses: dict[str, list[Tensor]] = {name: [] for name in names}
    norms: dict[str, list[Tensor]] = {name: [] for name in names}
    training = Training({}, {}, {name: [] for name in names}, {})
    batches = _batches(len(x), batch)
    for step in track(range(steps), description=f"train {title}", console=Console(stderr=True)):
        chosen = next(batches).to(device)
        x_batch, y_batch = x[chosen], y[chosen]
        for name in names if step % 2 == 0 else reversed(names):
            before = _start_of_peak(device)
            start = time.perf_counter_ns()
            loss = _step(learners[name], optimizers[name], x_batch, y_batch)
            _synchronize(device)
            training.step_ns[name].append(time.perf_counter_ns() - start)
            if device.type == "cuda":
                training.peak_bytes[name] = torch.cuda.max_memory_allocated(device) - before
            losses[name].append(loss)
            gradients = [weight.grad for weight in learners[name].model.parameters() if weight.grad is not None]
            norms[name].append(nn.utils.get_total_norm(gradients))
    training.losses = {name: torch.stack(values).tolist() for name, values in losses.items()}
    training.gradient_norms = {name: torch.stack(values).tolist() for name, values in norms.items()}
    return training


def largest_difference(a: list[float], b: list[float], *, relative: bool = False) -> float:
    """The largest |a - b|, or |a - b| / |b|, of all steps; NaN if there is one in either, which no tolerance takes."""
    a64, b64 = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    difference = (a64 - b64).abs()
    if relative:
        difference = torch.where(difference == 0, 0.0, difference / b64.abs())
    return float(difference.max())


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's CPU kernels in one thread: tensors this small are not worth the waking of a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _step(learner: Learner, optimizer: Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """The loss without its graph, which ends here: nothing of it is left in memory for the next learner."""
    loss = learner.loss(learner.model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _batches(n_samples: int, batch: int) -> Iterator[Tensor]:
    """Indices of full batches, epoch after epoch, shuffled on the CPU so that every device sees the same order."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(n_samples, generator=generator)
        yield from (order[start : start + batch] for start in range(0, n_samples - batch + 1, batch))


def _start_of_peak(device: torch.device) -> int:
    """Wait for the device; the bytes allocated now, above which a peak is counted from here on."""
    _synchronize(device)
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
