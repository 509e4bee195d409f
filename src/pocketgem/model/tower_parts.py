"""What all towers are built from: linears over weights as stored, clipped linears, the projector; checking and filling.

Towers compute in float32. Their matrices stay in the type the file has, as views of it where that is a plain type, and
each is widened when it is used: a tower then costs no memory of its own beside one widened matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config.towers import Shapes
from pocketgem.errors import WeightsError
from pocketgem.model import ops

_AS_STORED = (torch.float32, torch.bfloat16, torch.float16)


class WideLinear(nn.Module):
    """``[..., in] -> [..., out]`` in float32, whatever type the weights are kept in."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float(), None if self.bias is None else self.bias.float())


class ClippedLinear(nn.Module):
    """A linear whose input and output stay within bounds that the checkpoint brings, where it does."""

    def __init__(self, in_features: int, out_features: int, *, clipped: bool) -> None:
        super().__init__()
        self.linear = WideLinear(in_features, out_features)
        self.clipped = clipped
        for bound in ("input_min", "input_max", "output_min", "output_max") if clipped else ():
            self.register_parameter(bound, nn.Parameter(torch.empty(())))

    def forward(self, x: Tensor) -> Tensor:
        if not self.clipped:
            return self.linear(x)  # type: ignore[no-any-return]
        inside = _within(x, float(self.input_min), float(self.input_max))
        return _within(self.linear(inside), float(self.output_min), float(self.output_max))


def _within(x: Tensor, low: float, high: float) -> Tensor:
    return x if low == -math.inf and high == math.inf else x.clamp(low, high)


class Projector(nn.Module):
    """What a tower made becomes rows of the text model: a norm without weight, then a linear."""

    def __init__(self, in_features: int, out_features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embedding_projection = WideLinear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, in] -> [rows, out]``."""
        projected: Tensor = self.embedding_projection(ops.rms_norm(x, None, self.eps))
        return projected


def check_tower(wanted: Shapes, present: Mapping[str, StoredTensor], where: str) -> None:
    """Compare names and shapes with what the config asks for. Raises WeightsError naming the first that differs."""
    if missing := sorted(wanted.keys() - present.keys()):
        raise WeightsError(f"{where}: {len(missing)} tensors of a tower are missing, first {missing[0]}")
    if surplus := sorted(present.keys() - wanted.keys()):
        raise WeightsError(f"{where}: {len(surplus)} tensors have no place in the tower, first {surplus[0][:200]}")
    for name, shape in wanted.items():
        if present[name].shape != shape:
            raise WeightsError(f"{where}: {name} is {list(present[name].shape)}, the config says {list(shape)}")


def filled(tower: nn.Module, tensors: Mapping[str, StoredTensor]) -> nn.Module:
    """The tower, made on the meta device, with its weights by name. Raises CheckpointError if a file changed."""
    for path, part in tower.named_modules():
        for key in [key for key, _ in part.named_parameters(recurse=False)]:
            part.register_parameter(key, nn.Parameter(_value(tensors[f"{path}.{key}"]), requires_grad=False))
    return tower.eval()


def _value(stored: StoredTensor) -> Tensor:
    """A matrix as it is stored if torch can multiply it; else, and for all small tensors, float32 in memory."""
    if len(stored.shape) < 2:
        return stored.dense(torch.float32).clone()
    return stored.dense(stored.dtype if stored.dtype in _AS_STORED else torch.float32)
