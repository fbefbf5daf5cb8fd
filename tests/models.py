"""Models that use ``nn.Sigmoid``, as libraries write them; and an op that ends a gradient."""

from typing import Any

import torch
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018, as torchvision and timm write it: channels scaled by a gate from their means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * scale


class GatedMLP(nn.Module):
    """Dauphin et al. 2017, with the two projections apart, as in timm's SwiGLU."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(features, hidden)
        self.fc1_x = nn.Linear(features, hidden)
        self.act = nn.Sigmoid()
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.norm(self.act(self.fc1_g(x)) * self.fc1_x(x)))
        return out


class LSTM(nn.Module):
    """Hochreiter and Schmidhuber 1997, unrolled; its three gates share one module under three names."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weights = nn.ModuleList(nn.Linear(2 * features, features) for _ in range(4))
        self.input_gate = self.forget_gate = self.output_gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = torch.zeros_like(x[0])
        for step in x:
            i, f, g, o = (weight(torch.cat([step, hidden], dim=-1)) for weight in self.weights)
            cell = self.forget_gate(f) * cell + self.input_gate(i) * g.tanh()
            hidden = self.output_gate(o) * cell.tanh()
        return hidden


class Cut(torch.autograd.Function):
    """Passes its input on, and no gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> None:
        return None
