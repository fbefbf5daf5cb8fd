"""DDP, FSDP2 and DTensor on two processes give what one process gets with ``torch.sigmoid``."""

import datetime
import os
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from sigmoid_op import sigmoid
from sigmoid_op.conversion import convert
from sigmoid_op.override import enable
from tests.conftest import replace_launches
from tests.ulp import true_sigmoid

N_PROCESSES = 2


# In a model the kernels take the activations, which are plain tensors. A DTensor is a subclass: ``sigmoid`` hands it to
# PyTorch, and only what ``enable()`` puts below it reaches the local tensors.


def _model(way: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.Sigmoid()).double()
    if way == "sigmoid":
        convert(model)
    return model


def _batch() -> Tensor:
    return torch.linspace(-4, 4, 32, dtype=torch.float64).view(8, 4)


def _loss(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return model(x).square().mean()


def _ddp(rank: int, way: str) -> list[Tensor]:
    model = _model(way)
    parallel = DistributedDataParallel(model)  # alive until the backward pass, in which it reduces the gradients
    _loss(parallel, _batch().chunk(N_PROCESSES)[rank]).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _fsdp2(rank: int, way: str) -> list[Tensor]:
    model = _model(way)
    mesh = init_device_mesh("cpu", (N_PROCESSES,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    _loss(model, _batch().chunk(N_PROCESSES)[rank]).backward()
    return [p.grad.full_tensor() for p in model.parameters() if isinstance(p.grad, DTensor)]


def _trained_by_one_process() -> list[Tensor]:
    model = _model("torch")
    return list(torch.autograd.grad(_loss(model, _batch()), list(model.parameters())))


def _dtensor(placement: Placement) -> Callable[[int, str], list[Tensor]]:
    """σ of a distributed tensor, and its gradient."""

    def run(rank: int, way: str) -> list[Tensor]:
        mesh = init_device_mesh("cpu", (N_PROCESSES,))
        if isinstance(placement, Partial):  # the tensor is the sum of what the processes hold
            x = DTensor.from_local(_batch() * [0.25, 0.75][rank], mesh, [placement])
        else:
            x = distribute_tensor(_batch(), mesh, [placement])
        x.requires_grad_()
        out = (sigmoid if way == "sigmoid" else torch.sigmoid)(x)
        assert type(out) is DTensor
        if not isinstance(placement, Partial):
            assert out.placements == (placement,)
        full = out.full_tensor()
        full.square().sum().backward()
        assert isinstance(x.grad, DTensor)
        return [full.detach(), x.grad.full_tensor()]

    return run


def _computed_by_one_process() -> list[Tensor]:
    s = true_sigmoid(_batch())
    return [s, 2 * s * s * (1 - s)]


# What each of the processes does, and what one process would get.
CASES: dict[str, tuple[Callable[[int, str], list[Tensor]], Callable[[], list[Tensor]]]] = {
    "DDP": (_ddp, _trained_by_one_process),
    "FSDP2": (_fsdp2, _trained_by_one_process),
    **{
        f"DTensor, {placement}": (_dtensor(placement), _computed_by_one_process)
        for placement in (Shard(0), Shard(1), Replicate(), Partial())
    },
}
WAYS = ("sigmoid", "enable")
Outcome = tuple[list[Tensor] | str, int]  # the result, or why there is none, and how often a kernel was launched


def _process(rank: int, folder: str) -> None:
    from sigmoid_op.kernels.launch import launch

    torch.set_num_threads(1)
    launched: list[object] = []

    def count(kernel: object, *call: Any) -> None:
        launched.append(kernel)
        launch(kernel, *call)

    replace_launches(pytest.MonkeyPatch(), count)
    store, limit = f"file://{folder}/store", datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", store, rank=rank, world_size=N_PROCESSES, timeout=limit)
    outcomes: dict[tuple[str, str], Outcome] = {}
    for way in WAYS:
        for name, (case, _) in CASES.items():
            launched.clear()
            try:
                with enable() if way == "enable" else nullcontext():
                    outcomes[name, way] = case(rank, way), len(launched)
            except Exception:
                outcomes[name, way] = traceback.format_exc(), len(launched)
    torch.save(outcomes, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Outcome]]:
    """What two processes got, which talk over the loopback interface and run the kernels in Triton's interpreter."""
    folder: Path = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        spawn(_process, (os.fspath(folder),), nprocs=N_PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(N_PROCESSES)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes(processes: list[dict[tuple[str, str], Outcome]], name: str, way: str) -> None:
    """Each process gets what one process would get with torch.sigmoid; the kernels ran where they should."""
    expected = CASES[name][1]()
    for outcomes in processes:
        result, n_launched = outcomes[name, way]
        assert not isinstance(result, str), result
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        through_dtensor = name.startswith("DTensor") and way == "sigmoid"
        assert (n_launched == 0) == through_dtensor
