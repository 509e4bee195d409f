"""Calls into the compiled kernels, with tensors on this side of the door and addresses on the other.

Everything here is float32 rows ``[rows, width]`` unless it says otherwise. The compiled side trusts what it is given,
so types, shapes and contiguity are checked here; a violation is a fault of the caller and raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pocketgem import kernels
from pocketgem.kernels.low_rank import PackedLowRank, packed_low_rank
from pocketgem.kernels.slab import Slab

Numbers = npt.NDArray[np.int64]
Tables = tuple[Tensor, Tensor]
# Rows of a call and where their keys and values are: addresses of contiguous bfloat16 [keys, kv_heads, head_dim].
Target = tuple[int, int, int, int]  # start, stop, place of the keys, place of the values
Sight = tuple[Tensor, Tensor | None]  # [rows] int64: positions, and the last positions seen where they are others
Span = tuple[int, int, int, int, int, int]  # start, stop, keys, values, position of the first key, number of keys
Change = tuple[int, int, PackedLowRank]  # start, stop of rows of a call, and what their product is changed by
Segment = tuple[int, int, int]  # start, stop, number of the adapter that rows of a call have
PLAIN = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Weight(Protocol):
    """A matrix as the kernels read it: ``[rows, cols]``, packed or plain."""

    rows: int
    cols: int


@dataclass(frozen=True, eq=False)
class Norm:
    """An RMS norm that a kernel applies: its weight ``[width]`` float32, and what is added to the mean square."""

    weight: Tensor
    eps: float

    def __post_init__(self) -> None:
        _check(self.weight)


@dataclass(frozen=True, eq=False)
class Heads:
    """The shape of one layer's attention, and the norms of its queries and keys."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    scale: float
    normed_values: bool
    q_norm: Norm
    k_norm: Norm | None  # None: the layer reads another's keys


class Compute:
    """One model's kernels: an instruction set, threads and scratch memory. Not for two threads at once."""

    def __init__(self, set: str, threads: int) -> None:
        """Raises ValueError for a set that is not in this build."""
        if kernels.native is None:
            raise ValueError("the compiled kernels are not in this install")
        self._native: Any = kernels.native
        self._kernels = self._native.Kernels(set, threads)
        self._slab = Slab()

    @property
    def name(self) -> str:
        """The instruction set."""
        return str(self._kernels.name)

    @property
    def threads(self) -> int:
        return int(self._kernels.threads)

    @property
    def pool(self) -> Any:
        """The threads, for kernels that need nothing else."""
        return self._kernels.pool

    # ---- weights -----------------------------------------------------------------------------------------------------

    def packed(self, type: str, rows: int, cols: int, data: Tensor) -> Weight:
        """A packed matrix over ``data``, uint8 as ``native.pack`` wrote it."""
        weight: Weight = self._native.Weight(type, rows, cols, data.data_ptr(), data.numel(), data)
        return weight

    def plain(self, data: Tensor) -> Weight:
        """A matrix of float32, bfloat16 or float16 as it lies in memory, ``[rows, cols]``."""
        rows, cols = data.shape
        weight: Weight = self._native.Weight(PLAIN[data.dtype], rows, cols, data.data_ptr(), data.nbytes, data)
        return weight

    def low_rank(self, A: Tensor, B: Tensor, scale: float) -> PackedLowRank:
        """``scale * B @ A``, A ``[rank, in]``, B ``[out, rank]``, as a change of products of a matrix ``[out, in]``."""
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            raise ValueError(f"a change of {list(A.shape)} and {list(B.shape)}")
        return packed_low_rank(self._native, A, B, scale)

    def rows(self, type: str, table: Tensor, shape: tuple[int, int], ids: Tensor, factor: float) -> Tensor:
        """Rows ``ids`` (int64) of a stored table of ``shape``, times ``factor``: ``[ids, cols]``."""
        rows, cols = shape
        ids = ids.contiguous()
        out = torch.empty(ids.shape[0], cols)
        self._native.dequantize_rows(
            self.pool, type, table.data_ptr(), rows, cols, ids.data_ptr(), ids.shape[0], factor, out.data_ptr()
        )
        return out

    # ---- products ----------------------------------------------------------------------------------------------------

    def linear(self, x: Tensor, weight: Weight, norm: Norm | None = None, changes: Sequence[Change] = ()) -> Tensor:
        """``norm(x) @ weight.T``, and what ``changes`` add to some rows of it."""
        out = torch.empty(x.shape[0], weight.rows)
        source = _rows(x, weight.cols)
        self._native.linear(self._kernels, source, x.shape[0], *_norm(norm), weight, out.data_ptr(), _natives(changes))
        return out

    def change_(self, out: Tensor, x: Tensor, changes: Sequence[Change]) -> Tensor:
        """Add to the products ``out`` of rows x what ``changes`` add to some of them, in place."""
        source, rows = _rows(x, x.shape[-1]), x.shape[0]
        target = _rows(out, out.shape[-1])
        if out.shape[0] != rows:
            raise ValueError(f"change: {out.shape[0]} products of {rows} rows")
        self._native.change_rows(self._kernels, source, rows, x.shape[-1], out.shape[-1], target, _natives(changes))
        return out

    def fine_linear(self, x: Tensor, weight: Weight) -> Tensor:
        """``x @ weight.T`` with activations in about 16 bits instead of 8, at the same cost in memory traffic."""
        out = self._slab.empty(x.shape[0], weight.rows)
        self._native.fine_linear(self._kernels, _rows(x, weight.cols), x.shape[0], 0, 0.0, weight, out.data_ptr())
        return out

    def linears(self, x: Tensor, weights: Sequence[Weight], norm: Norm | None = None) -> list[Tensor]:
        """The same for up to three matrices; x is normed and quantised once."""
        outs = [torch.empty(x.shape[0], weight.rows) for weight in weights]
        addresses = [out.data_ptr() for out in outs]
        source = _rows(x, weights[0].cols)
        self._native.linears(self._kernels, source, x.shape[0], *_norm(norm), list(weights), addresses)
        return outs

    def geglu(
        self,
        x: Tensor,
        gate: Weight,
        up: Weight,
        norm: Norm | None = None,
        changes: tuple[Sequence[Change], Sequence[Change]] = ((), ()),
    ) -> Tensor:
        """``gelu_tanh(norm(x) @ gate.T) * (norm(x) @ up.T)``; changes: of gate's products, and of up's."""
        out = torch.empty(x.shape[0], gate.rows)
        self._native.geglu_linear(
            self._kernels,
            _rows(x, gate.cols),
            x.shape[0],
            *_norm(norm),
            gate,
            up,
            out.data_ptr(),
            *map(_natives, changes),
        )
        return out

    def gated(self, x: Tensor, weight: Weight, vectors: Tensor) -> Tensor:
        """``gelu_tanh(x @ weight.T) * vectors``; the rows of ``vectors`` may be apart from each other."""
        if vectors.shape != (x.shape[0], weight.rows) or vectors.stride(-1) != 1 or vectors.dtype != torch.float32:
            raise ValueError("gated: vectors do not fit")
        out = torch.empty(x.shape[0], weight.rows)
        self._native.gated_linear(
            self._kernels,
            _rows(x, weight.cols),
            x.shape[0],
            weight,
            vectors.data_ptr(),
            vectors.stride(0),
            out.data_ptr(),
        )
        return out

    def add(self, residual: Tensor, x: Tensor, weight: Weight, norm: Norm, factor: float = 1.0) -> Tensor:
        """``(residual + norm(x @ weight.T)) * factor``, a new tensor."""
        out = torch.empty_like(residual)
        self._native.add_linear(
            self._kernels,
            _rows(x, weight.cols),
            x.shape[0],
            weight,
            *_norm(norm),
            factor,
            _rows(residual, weight.rows),
            out.data_ptr(),
        )
        return out

    def stack(self, gates: Sequence[Weight], ups: Sequence[Weight], downs: Sequence[Weight]) -> Any:
        """The routed experts of one layer, for ``experts``."""
        return self._native.Experts(list(gates), list(ups), list(downs))

    def experts(self, x: Tensor, stack: Any, shares: Tensor, indices: Tensor) -> Tensor:
        """``sum(share * down(gelu_tanh(gate(x)) * up(x)))`` over each row's experts.

        shares, indices: ``[rows, chosen]`` float32 and int64.
        """
        _check(shares)
        if shares.shape != indices.shape or shares.shape[0] != x.shape[0] or indices.dtype is not torch.int64:
            raise ValueError("experts: one share for each index, one row of them for each row of x")
        indices, out = indices.contiguous(), torch.empty_like(x)
        self._native.experts(
            self._kernels,
            _rows(x, stack.cols),
            x.shape[0],
            stack,
            indices.data_ptr(),
            shares.data_ptr(),
            shares.shape[-1],
            out.data_ptr(),
        )
        return out

    def expert_shape(self, types: Sequence[str], width: int, hidden: int, count: int) -> Any:
        """``count`` routed experts whose bytes come and go; types of gate, up and down. For ``experts_present``."""
        gate, up, down = types
        return self._native.ExpertShape(gate, up, down, width, hidden, count)

    def experts_present(self, x: Tensor, shape: Any, addresses: Tensor, indices: Tensor, products: Tensor) -> None:
        """``down(gelu_tanh(gate(x)) * up(x))`` of those experts that are in memory, into their rows of ``products``.

        addresses: ``[experts, 3]`` int64 of packed gate, up and down, 0 for an expert that is not in memory.
        indices: ``[rows, chosen]`` int64. products: ``[rows * chosen, hidden]``.
        """
        if addresses.shape != (shape.count, 3) or addresses.dtype is not torch.int64 or not addresses.is_contiguous():
            raise ValueError("experts_present: three addresses for each expert")
        if indices.shape[0] != x.shape[0] or indices.dtype is not torch.int64 or not indices.is_contiguous():
            raise ValueError("experts_present: a row of indices for each row of x")
        if products.shape[0] != indices.numel():
            raise ValueError("experts_present: a product for each index")
        self._native.experts_present(
            self._kernels,
            _rows(x, shape.cols),
            x.shape[0],
            shape,
            addresses.data_ptr(),
            indices.data_ptr(),
            indices.shape[-1],
            _rows(products, shape.cols),
        )

    def experts_mix(self, products: Tensor, shares: Tensor) -> Tensor:
        """``[rows * chosen, hidden] -> [rows, hidden]``: the sum of share times product, in the order chosen."""
        _check(shares)
        (rows, chosen), hidden = shares.shape, products.shape[-1]
        if products.shape[0] != rows * chosen:
            raise ValueError("experts_mix: a share for each product")
        out = torch.empty(rows, hidden)
        self._native.experts_mix(
            self._kernels, _rows(products, hidden), rows, hidden, shares.data_ptr(), chosen, out.data_ptr()
        )
        return out

    # ---- attention ---------------------------------------------------------------------------------------------------

    def write_keys(self, heads: Heads, k: Tensor, v: Tensor, tables: Tables, targets: Sequence[Target]) -> None:
        """Norm and rotate the raw projections k and v ``[rows, kv_heads * head_dim]`` and store them as bfloat16.

        tables: cos and sin ``[rows, head_dim / 2]``. v may be k: a layer whose values are its raw keys.
        """
        if heads.k_norm is None:
            raise ValueError("write_keys: this layer has no keys of its own")
        width = heads.num_kv_heads * heads.head_dim
        self._native.write_keys(
            self._kernels,
            _rows(k, width),
            _rows(v, width),
            *_norm(heads.k_norm),
            heads.normed_values,
            *_angles(tables, heads.head_dim),
            k.shape[0],
            heads.num_kv_heads,
            heads.head_dim,
            targets,
        )

    def attend(self, heads: Heads, q: Tensor, tables: Tables, sight: Sight, spans: Sequence[Span]) -> Tensor:
        """Norm and rotate the raw queries q ``[rows, heads * head_dim]`` and attend: the same shape.

        A row at position p sees the keys at p - window + 1 ... p of its span, or those up to its ``last``.
        """
        out = torch.empty_like(q)
        self._native.attend(
            self._kernels,
            _rows(q, heads.num_heads * heads.head_dim),
            *_norm(heads.q_norm),
            *_angles(tables, heads.head_dim),
            *_sight(sight),
            q.shape[0],
            heads.num_heads,
            heads.num_kv_heads,
            heads.head_dim,
            heads.window or 0,
            heads.scale,
            spans,
            out.data_ptr(),
        )
        return out

    def layer(
        self, parts: Mapping[str, Weight], norms: Mapping[str, Norm], heads: Heads, factor: float
    ) -> FusedDecoder:
        """A whole decoder layer; the names of its parts are those of ``native/layer.h``."""
        return FusedDecoder(self._native, self._kernels, parts, norms, heads, factor)

    def layers(self, layers: Sequence[tuple[FusedDecoder, int, int]]) -> FusedStack:
        """Layers that run in one call; of each its angles' number, and the writing layer whose keys it reads."""
        return FusedStack(self._native, self._kernels, layers)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """Rows of the norm's width, normed: a new tensor."""
        out, width = torch.empty_like(x), norm.weight.shape[0]
        self._native.norm(
            self._kernels, _rows(x, width), norm.weight.data_ptr(), out.data_ptr(), x.shape[0], width, norm.eps
        )
        return out

    def add_norm_(self, x: Tensor, y: Tensor, norm: Norm, factor: float) -> Tensor:
        """``(x + norm(y)) * factor``, in place, over rows of the norm's width."""
        width = norm.weight.shape[0]
        if x.shape != y.shape:
            raise ValueError(f"add_norm: {list(x.shape)} and {list(y.shape)}")
        self._native.add_norm(
            self._kernels, _rows(x, width), _rows(y, width), norm.weight.data_ptr(), x.shape[0], width, norm.eps, factor
        )
        return x

    def peaks(self, x: Tensor) -> list[int | None]:
        """See ``ops.peaks``."""
        ids: list[int | None] = self._native.peaks(self._kernels, _rows(x, x.shape[-1]), *x.shape)
        return ids

    def softcap_(self, x: Tensor, cap: float) -> Tensor:
        """``cap * tanh(x / cap)``, in place."""
        _check(x)
        self._native.softcap(self._kernels, x.data_ptr(), x.shape[0], x.shape[-1], cap)
        return x


def nobodys(count: int) -> Sequence[Segment]:
    """Rows of a call that no adapter changes: all."""
    return ()


class FusedDecoder:
    """A decoder layer in two calls: ``write_keys``, then ``run`` (or ``attention`` alone).

    Adapters that it was told of by ``put`` change the rows that are theirs: ``whose`` is asked for each call.
    """

    def __init__(
        self,
        native: Any,
        kernels: Any,
        parts: Mapping[str, Weight],
        norms: Mapping[str, Norm],
        heads: Heads,
        factor: float,
    ) -> None:
        """Raises ValueError for matrices that do not fit each other."""
        self._native, self._kernels = native, kernels
        self._norms = {**norms, "q_norm": heads.q_norm, **({} if heads.k_norm is None else {"k_norm": heads.k_norm})}
        self.hidden, self.half = parts["q"].cols, heads.head_dim // 2
        self.vector = parts["into"].rows if "into" in parts else None
        numbers = {
            "eps": heads.q_norm.eps,
            "scale": heads.scale,
            "factor": factor,
            "heads": heads.num_heads,
            "kv_heads": heads.num_kv_heads,
            "dim": heads.head_dim,
            "window": heads.window or 0,
            "normed_values": heads.normed_values,
        }
        addresses = {name: norm.weight.data_ptr() for name, norm in self._norms.items()}
        self.native = native.Layer(dict(parts), addresses, numbers)
        self.whose: Callable[[int], Sequence[Segment]] = nobodys

    def put(self, number: int, changes: Mapping[str, PackedLowRank]) -> None:
        """Know an adapter's changes of this layer's parts. Raises ValueError for one that does not fit."""
        self.native.put(number, {part: change.native for part, change in changes.items()})

    def drop(self, number: int) -> None:
        """Forget an adapter; nothing happens where it is not known."""
        self.native.drop(number)

    def write_keys(self, x: Tensor, tables: Tables, targets: Sequence[Target]) -> None:
        """Project the residual rows x ``[rows, hidden]`` and store their keys and values."""
        self._native.layer_keys(
            self._kernels,
            self.native,
            _rows(x, self.hidden),
            x.shape[0],
            *_angles(tables, 2 * self.half),
            targets,
            self.whose(x.shape[0]),
        )

    def attention(self, x: Tensor, tables: Tables, sight: Sight, spans: Sequence[Span]) -> Tensor:
        """``x + norm(attention(norm(x)))``."""
        out = torch.empty_like(x)
        angles, rows = _angles(tables, 2 * self.half), _rows(x, self.hidden)
        self._native.layer_attention(
            self._kernels,
            self.native,
            rows,
            x.shape[0],
            *angles,
            *_sight(sight),
            spans,
            out.data_ptr(),
            self.whose(x.shape[0]),
        )
        return out

    def run(self, x: Tensor, tables: Tables, sight: Sight, spans: Sequence[Span], vectors: Tensor | None) -> Tensor:
        """The whole layer: ``[rows, hidden] -> [rows, hidden]``. vectors: ``[rows, dim]`` where it takes them."""
        vector, stride = (0, 0) if vectors is None else (vectors.data_ptr(), vectors.stride(0))
        if vectors is not None and (vectors.shape != (x.shape[0], self.vector) or vectors.stride(1) != 1):
            raise ValueError(f"vectors of {list(vectors.shape)} for {x.shape[0]} rows of {self.vector}")
        out = torch.empty_like(x)
        angles, rows = _angles(tables, 2 * self.half), _rows(x, self.hidden)
        self._native.layer(
            self._kernels,
            self.native,
            rows,
            x.shape[0],
            *angles,
            *_sight(sight),
            spans,
            vector,
            stride,
            out.data_ptr(),
            self.whose(x.shape[0]),
        )
        return out


class FusedStack:
    """Decoder layers one after another in one call: between them nothing waits for Python."""

    def __init__(self, native: Any, kernels: Any, layers: Sequence[tuple[FusedDecoder, int, int]]) -> None:
        """Raises ValueError for layers that read keys which no earlier one writes."""
        self._native, self._kernels, self._layers = native, kernels, [layer for layer, _, _ in layers]
        self._halves = {angles: layer.half for layer, angles, _ in layers}
        self._stack = native.Stack([(layer.native, angles, keys) for layer, angles, keys in layers])

    def run_(
        self,
        x: Tensor,
        tables: Sequence[Tables],
        positions: Tensor,
        places: tuple[Numbers, Numbers],
        vectors: Tensor | None,
    ) -> Tensor:
        """x ``[rows, hidden]`` in place. places: see ``model/places.py``. vectors: ``[rows, layers, dim]``."""
        first, rows = self._layers[0], x.shape[0]
        shape = None if first.vector is None else (rows, len(self._layers), first.vector)
        if shape != (None if vectors is None else vectors.shape):
            raise ValueError(f"layers: vectors {shape}, not {None if vectors is None else list(vectors.shape)}")
        if vectors is not None:
            _check(vectors)
        self._native.layers(
            self._kernels,
            self._stack,
            _rows(x, first.hidden),
            rows,
            [_angles(one, 2 * self._halves[number]) for number, one in enumerate(tables)],
            positions.data_ptr(),
            *_places(places),
            *((0, 0, 0) if vectors is None else (vectors.data_ptr(), vectors.stride(0), vectors.stride(1))),
            first.whose(rows),
        )
        return x


def _check(x: Tensor) -> None:
    if x.dtype is not torch.float32 or not x.is_contiguous():
        raise ValueError(f"kernels take contiguous float32, not {x.dtype} of strides {x.stride()}")


def _rows(x: Tensor, width: int) -> int:
    """The address of rows ``[rows, width]``."""
    _check(x)
    if x.shape[-1] != width or x.ndim != 2:
        raise ValueError(f"rows of {list(x.shape)} for a kernel of width {width}")
    return x.data_ptr()


def _natives(changes: Sequence[Change]) -> list[tuple[int, int, Any]]:
    return [(start, stop, change.native) for start, stop, change in changes]


def _norm(norm: Norm | None) -> tuple[int, float]:
    return (0, 0.0) if norm is None else (norm.weight.data_ptr(), norm.eps)


def _sight(sight: Sight) -> tuple[int, int]:
    positions, last = sight
    return positions.data_ptr(), 0 if last is None else last.data_ptr()


def _places(places: tuple[Numbers, Numbers]) -> tuple[int, int, int, int]:
    """Addresses and counts: of spans, and of layers."""
    spans, all = places
    if (
        spans.shape != (all.shape[1], 2)
        or all.shape[2] != 6
        or not (spans.flags.c_contiguous and all.flags.c_contiguous)
    ):
        raise ValueError(f"places of {list(all.shape)} for spans of {list(spans.shape)}")
    return spans.ctypes.data, len(spans), all.ctypes.data, len(all)


def _angles(tables: Tables, head_dim: int) -> tuple[int, int]:
    cos, sin = tables
    _check(cos)
    _check(sin)
    if cos.shape[-1] != head_dim // 2 or sin.shape != cos.shape:
        raise ValueError(f"angles of {list(cos.shape)} for heads of {head_dim}")
    return cos.data_ptr(), sin.data_ptr()
