"""Weights that stay in the file's blocks where torch computes, on a card as a rule: unpacked piece by piece in use.

A 31B is 17 GB in Q4_0 and 61 GB in bfloat16: on a card of 24 GB only the first has room. The price is time: for each
product torch's operations write the unpacked piece and read it again. The values are those of ``dequant.py``, rounded
to the activations' type as ``build.py`` rounds whole matrices, so only the order of sums may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.load import JoinedTensor, TextTensor
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.memory.rows import read_table
from pocketgem.model import ops
from pocketgem.model.experts import Experts
from pocketgem.model.layers import Embedding, Linear

PIECE = 8 << 20  # weights unpacked at a time: about 100 MB with the temporaries


class Blocks(nn.Module):
    """A matrix ``[rows, cols]`` in blocks. ``data``: uint8 ``[rows, bytes a row]``."""

    def __init__(self, stored: StoredTensor, device: torch.device, dtype: torch.dtype) -> None:
        """Stacks ``[members, rows, cols]`` are one tall matrix. Raises CheckpointError if the file cannot be read."""
        super().__init__()
        self.stored_type, self.dtype, self.cols = stored.type, dtype, stored.shape[-1]
        width = self.cols // self.stored_type.block_size * self.stored_type.type_size
        self.data: Tensor
        self.register_buffer("data", read_table(stored).view(-1, width).to(device), persistent=False)

    def unpacked(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` in the activations' type."""
        return self._values(self.data[start:stop])

    def chosen(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64 [n], on the data's device)."""
        return self._values(self.data.index_select(0, ids))

    def times(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """``x [n, cols]`` by rows ``start`` to ``stop``: ``[n, stop - start]``."""
        stop = len(self.data) if stop is None else stop
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Times.apply(x, self, start, stop)  # type: ignore[no-untyped-call]
            return out
        pieces = [ops.linear(x, self.unpacked(*piece)) for piece in self.pieces(start, stop)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def back(self, grad: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """``grad [n, stop - start]`` through ``times``: ``[n, cols]``."""
        total = grad.new_zeros(len(grad), self.cols)
        for begin, end in self.pieces(start, len(self.data) if stop is None else stop):
            total.addmm_(grad[:, begin - start : end - start], self.unpacked(begin, end))
        return total

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Rows that are unpacked together, from and up to which."""
        step = max(1, PIECE // self.cols)
        for at in range(start, stop, step):
            yield at, min(at + step, stop)

    def _values(self, rows: Tensor) -> Tensor:
        blocks = rows.reshape(-1, self.stored_type.type_size)
        return dequantize(blocks, self.stored_type).view(len(rows), self.cols).to(self.dtype)


class _Times(torch.autograd.Function):
    """``Blocks.times`` that unpacks once more on the way back. Torch would keep every unpacked piece until then: the
    whole model in floats, which is what blocks are there to avoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Blocks, start: int, stop: int) -> Tensor:
        ctx.blocks, ctx.rows = blocks, (start, stop)
        return blocks.times(x.detach(), start, stop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.blocks.back(grad, *ctx.rows), None, None, None


class BlockLinear(nn.Module):
    """``layers.Linear`` over blocks."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self.blocks = blocks
        self.in_features, self.out_features = blocks.cols, len(blocks.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks.times(x)


class BlockEmbedding(nn.Module):
    """``layers.Embedding`` over blocks."""

    def __init__(self, blocks: Blocks, scale: float) -> None:
        super().__init__()
        self.blocks, self.scale, self.dtype = blocks, scale, blocks.dtype

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.blocks.chosen(ids.to(self.blocks.data.device))  # [rows, hidden]
        return rows * torch.tensor(self.scale, dtype=rows.dtype)

    def expect(self, ids: Sequence[int]) -> None:
        """Nothing to do: the rows are in memory."""


class BlockExperts(Experts):
    """``experts.Experts`` over blocks: gate and up in one stack or in two, as the file has them."""

    def __init__(self, gates: Sequence[Blocks], down: Blocks, count: int) -> None:
        nn.Module.__init__(self)
        self.gates, self.down, self.count = nn.ModuleList(gates), down, count

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert on its rows ``[n, hidden]``."""
        gate, up = torch.cat([_member(one, expert, self.count, x) for one in self.gates], dim=-1).chunk(2, dim=-1)
        return _member(self.down, expert, self.count, ops.geglu(gate, up))


def _member(stack: nn.Module, index: int, count: int, x: Tensor) -> Tensor:
    assert isinstance(stack, Blocks)
    rows = len(stack.data) // count
    return stack.times(x, index * rows, (index + 1) * rows)


def in_blocks(stored: TextTensor) -> bool:
    """Whether a tensor is stored in blocks, all of it."""
    parts = (stored.gate, stored.up) if isinstance(stored, JoinedTensor) else (stored,)
    return all(part.type.block_size > 1 for part in parts)


def block_module(
    plain: nn.Module, stored: dict[str, TextTensor], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """What takes the place of a plain module whose matrices are in blocks. ``stored``: by the module's own keys."""

    def blocks(key: str) -> list[Blocks]:
        found = stored[key]
        parts = (found.gate, found.up) if isinstance(found, JoinedTensor) else (found,)
        return [Blocks(part, device, dtype) for part in parts]

    if isinstance(plain, Experts):
        return BlockExperts(blocks("gate_up_proj"), blocks("down_proj")[0], len(plain.down_proj))
    if isinstance(plain, Embedding):
        return BlockEmbedding(blocks("weight")[0], plain.scale)
    return BlockLinear(blocks("weight")[0])


BLOCKABLE = (Linear, Embedding, Experts)
