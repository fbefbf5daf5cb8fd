"""python -m bench train --task multilabel: real use of both losses; ours and PyTorch's trainings are the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import imbalanced, multilabel, side_by_side
from bench.__main__ import main
from bench.imbalanced import canvases
from bench.providers import OURS, TORCH
from bench.side_by_side import Learner, largest_difference
from sigmoid_op.ops.focal import sigmoid_focal_loss, torchvision_focal_loss
from tests.conftest import Route

CPU = torch.device("cpu")

Train = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs the command; returns its exit code and what it wrote."""

    def run(steps: int, device: str = "cpu") -> tuple[int, dict[str, Any]]:
        code = main(
            ["train", "--task", "multilabel", "--device", device, "--steps", str(steps), "--out", str(tmp_path)]
        )
        return code, json.loads((tmp_path / "multilabel.json").read_text())

    return run


def test_a_canvas_holds_real_digits_and_its_labels_say_which() -> None:
    """Every tile is an image of scikit-learn's, and no training image is on a test canvas; the labels are theirs."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    class_of = {image.tobytes(): int(label) for image, label in zip(images, classes, strict=True)}
    seen = {}
    for part in ("train", "test"):
        data = canvases(part, 500, CPU)
        tiles = [[(tile.double() * 16).numpy().tobytes() for tile in canvas] for canvas in data.x]
        for canvas, labels in zip(tiles, data.y, strict=True):
            assert {class_of[tile] for tile in canvas} == set(labels.nonzero().flatten().tolist())
        seen[part] = {tile for canvas in tiles for tile in canvas}
    assert not seen["train"] & seen["test"]


def test_the_labels_are_imbalanced_and_each_can_be_tested() -> None:
    """From nearly all canvases for a 0 to a few in a hundred for a 9; the same canvases each time."""
    frequency = canvases("train", multilabel.N_TRAIN, CPU).frequency
    assert frequency[0] > 0.95
    assert frequency[9] < 0.03
    assert frequency.diff().max() < 0
    test_set = canvases("test", multilabel.N_TEST, CPU)
    assert test_set.y.sum(0).min() > 40
    assert test_set.x.equal(canvases("test", multilabel.N_TEST, CPU).x)


def test_the_fallback_trains_bit_for_bit_as_pytorch(
    fallback: object, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal losses and scores; it learns; all samples, tables and a plot; what did not run is not claimed."""
    code, record = train(60)
    assert code == 0
    assert [history["loss"] for history in record["histories"]] == ["BCE", "focal"]
    for history in record["histories"]:
        ours, torchs = history["losses"][OURS], history["losses"][TORCH]
        assert ours == torchs
        assert len(ours) == len(history["step_ns"][OURS]) == len(history["step_ns"][TORCH]) == 60
        assert ours[-1] < 0.3 * ours[0]
        assert history["average_precision"][OURS] == history["average_precision"][TORCH]
        assert sum(history["average_precision"][OURS]) / 10 > 0.6  # a guess has the mean of the frequencies, 0.22
        assert history["route"] == "torch"
        assert history["peak_bytes"] == {}
    assert record["large"] == []
    assert record["environment"]["torch_threads"] == 1
    text = capsys.readouterr().out
    assert "PyTorch's own kernels" in text
    assert "Triton kernels" not in text
    assert "not measured" in text
    assert (tmp_path / "multilabel.png").stat().st_size > 10_000


def test_the_kernels_train_as_pytorch_does(
    kernel_route: Route, train: Train, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three dozen steps through our kernels: losses and gradients within 1e-4 of PyTorch's, nearly the same scores."""
    monkeypatch.setattr(multilabel, "BATCH", 16)
    monkeypatch.setattr(multilabel, "LARGE_BATCH", 64)
    code, record = train(36, kernel_route.device)
    assert code == 0
    for history in record["histories"]:
        assert history["route"] == "kernel"
        for curves in (history["losses"], history["gradient_norms"]):
            torch.testing.assert_close(curves[OURS], curves[TORCH], rtol=1e-4, atol=0)
        precision = history["average_precision"]
        torch.testing.assert_close(precision[OURS], precision[TORCH], rtol=0, atol=0.02)
    assert set(launches) == {"bce", "bce_backward", "focal", "focal_backward"}


def _with_gradient_times(factor: float, x: Tensor) -> Tensor:
    """``x`` to the bit; its gradient is not."""
    return x.detach() + factor * (x - x.detach())


def _off_by_1e5(logits: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, y, **options) * 1.00001


def _without_weights(logits: Tensor, y: Tensor, **_: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, y)


def _right_with_a_wrong_gradient(logits: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(_with_gradient_times(2, logits), y, **options)


def _not_a_number(logits: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, y, **options) * torch.nan


@pytest.mark.parametrize("wrong", [_off_by_1e5, _without_weights, _right_with_a_wrong_gradient, _not_a_number])
def test_a_wrong_loss_is_noticed(
    wrong: Callable[..., Tensor],
    fallback: object,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 for a loss, or a gradient alone, that is not PyTorch's; for BCE, and not for focal loss."""
    monkeypatch.setattr(imbalanced, "binary_cross_entropy_with_logits", wrong)
    assert train(4)[0] == 1
    text = capsys.readouterr().out
    assert text.count("DIFFER") == 1
    assert text.count("Agree") == 1


def _other_gamma(logits: Tensor, y: Tensor, reduction: str) -> Tensor:
    return sigmoid_focal_loss(logits, y, gamma=2.1, reduction=reduction)


def _gradient_off_by_a_factor(logits: Tensor, y: Tensor, reduction: str) -> Tensor:
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: Tensor) -> Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, grad_out: Tensor) -> Tensor:
            return 1.01 * grad_out

    loss: Tensor = Off.apply(sigmoid_focal_loss(logits, y, reduction=reduction))
    return loss


@pytest.mark.parametrize("wrong", [_other_gamma, _gradient_off_by_a_factor])
def test_a_wrong_kernel_is_noticed(
    wrong: Callable[..., Tensor], kernel_route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tolerances for kernels take neither a focal loss whose γ is 2.1, nor a gradient that Adam would not mind."""
    monkeypatch.setattr(imbalanced, "sigmoid_focal_loss", wrong)
    data = canvases("train", 64, torch.device(kernel_route.device))
    history = imbalanced.train("focal", data, None, batch=16, steps=2)
    assert history.route == "kernel"
    assert not history.agrees


def test_large_batches_are_timed_without_scores(
    fallback: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only a GPU is asked for, here on the CPU and small: its histories, and a table of them."""
    monkeypatch.setattr(multilabel, "LARGE_BATCH", 256)
    large = list(multilabel._large(3, CPU))
    assert [history.batch for history in large] == [256, 256]
    assert all(history.agrees and history.f1 == {} for history in large)
    data = canvases("test", 200, CPU)
    histories = [imbalanced.train(loss, data, data, 16, 3) for loss in imbalanced.LOSSES]
    multilabel._print(histories, large, data, data, CPU)
    text = capsys.readouterr().out
    assert "batches of 2^8 canvases" in text
    assert "BCE, 2560 labels a step" in text


def test_all_learners_see_the_same_batches_and_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    """Every batch goes to both, the second being first every other time; a last batch that is not full is left out."""
    seen: list[tuple[str, Tensor]] = []

    class Watched(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.weight = name, nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.name, x))
            return self.weight * x

    learners = {name: Learner(Watched(name), F.mse_loss) for name in "ab"}
    x = torch.arange(7.0)
    side_by_side.train(learners, x, x, batch=3, steps=4, learning_rate=0.1, title="test")
    assert "".join(name for name, _ in seen) == "abbaabba"
    for (_, first), (_, second) in zip(seen[::2], seen[1::2], strict=True):
        assert first.equal(second)
    assert torch.cat([seen[0][1], seen[2][1]]).unique().numel() == 6


def test_a_nan_is_the_largest_difference() -> None:
    """Wherever it stands, and in both: no tolerance takes it."""
    nan = float("nan")
    for a, b in (([nan, 1.0], [1.0, 1.0]), ([1.0, nan], [1.0, 1.0]), ([1.0, nan], [1.0, nan])):
        assert not largest_difference(a, b) <= 1e9
        assert not largest_difference(a, b, relative=True) <= 1e9
    assert largest_difference([2.0, 4.0], [2.0, 5.0]) == 1.0
    assert largest_difference([2.0, 4.0], [2.0, 5.0], relative=True) == 0.2
    assert largest_difference([0.0], [0.0], relative=True) == 0.0


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.9, 1.5), (-1, 0.0)])
def test_the_reference_is_focal_loss(alpha: float, gamma: float) -> None:
    """-α_t (1 - p_t)^γ log p_t, by mpmath, for either target; without weights for α = -1."""
    x = torch.tensor([-5.0, -0.5, 0.0, 3.0], dtype=torch.float64)
    for target in (0.0, 1.0):
        loss = torchvision_focal_loss(x, torch.full_like(x, target), alpha, gamma)
        for logit, value in zip(x.tolist(), loss.tolist(), strict=True):
            p_t = 1 / (1 + mpmath.exp(-logit if target else logit))
            alpha_t = 1 if alpha < 0 else alpha if target else 1 - alpha
            assert value == pytest.approx(float(-alpha_t * (1 - p_t) ** gamma * mpmath.log(p_t)), rel=1e-13)


@pytest.mark.gpu
def test_a_gpu_times_large_batches_through_the_kernels(train: Train) -> None:
    """On CUDA: the large step takes the kernels at the library's own threshold, and needs no more memory."""
    code, record = train(5, "cuda")
    assert code == 0
    assert [history["route"] for history in record["histories"] + record["large"]] == ["kernel"] * 4
    for history in record["large"]:
        assert history["batch"] == multilabel.LARGE_BATCH
        assert 0 < history["peak_bytes"][OURS] <= history["peak_bytes"][TORCH]
