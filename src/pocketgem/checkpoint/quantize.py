"""How float32 weights become blocks: the other way of ``dequant.py``, which draws the layouts.

Every block's scale is searched for, not taken from its largest weight: what counts is the sum of squared errors of the
block, with all weights alike (no importance matrix). For one scale and given whole numbers q the best scale is a
least-squares fit, ``sum(xq) / sum(qq)``, and it lowers the error by ``sum(xq)^2 / sum(qq)``; so a few ways of rounding
are tried, and the best is fitted and rounded again. Scales are rounded to half precision before the last rounding.

Inside, weights of a block lie along the first dimension and blocks side by side: sums then run over whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pocketgem.checkpoint.types import StoredType
from pocketgem.errors import UnsupportedError

TILE = 1 << 15  # weights worked on at a time: they stay in the cache, and torch starts no threads for so few
TINY = 1e-30  # scales below it are zero: their inverse would not be a number any more
REFITS = 3
# What the largest weight of a block is divided into, tried one after the other. Four and five bits reach one step
# further on one side of zero, so that side gets the largest weight, mostly; a little beyond it, the weight is clipped.
_LEVELS_4 = (-8.0, -7.6, -7.2, -8.5, 7.0, -6.8, 7.5, -9.0)
_LEVELS_5 = (-16.0, -15.5, -15.0, -16.6, 15.0, -14.5, 15.5, -17.2)
_LEVELS_6 = (-32.0, -31.4, -30.7, 31.0, -32.7)
_LEVELS_8 = (127.0, 126.5)


def quantizable(type: StoredType) -> bool:
    """Whether ``quantize`` knows this block type."""
    return type in _PACK


def quantize(weights: Tensor, type: StoredType) -> Tensor:
    """float32 [n, block_size] -> uint8 [n, type_size], the blocks of least squared error that the search finds.

    Weights must be finite. Raises UnsupportedError for a type that is not written.
    """
    if type not in _PACK:
        raise UnsupportedError(f"cannot quantise to {type}; use {', '.join(_PACK)}")
    out = torch.empty((weights.shape[0], type.type_size), dtype=torch.uint8)
    step = TILE // type.block_size
    for start in range(0, weights.shape[0], step):
        tile = weights[start : start + step].t().contiguous()  # [block_size, n]
        out[start : start + step] = _PACK[type](tile).t()
    return out


# ---- rounding ------------------------------------------------------------------------------------------------------


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale.abs() < TINY, 0.0, 1.0 / scale)


def _rounded(x: Tensor, inverse: Tensor, low: int, high: int) -> Tensor:
    return (x * inverse).round_().clamp_(low, high)


def _half(scale: Tensor) -> Tensor:
    """The float16 nearest to a scale, as float32; what is too large for one stays finite."""
    return scale.clamp(-65504.0, 65504.0).half().float()


def _bytes(scale: Tensor) -> Tensor:
    """float32 [1, n] that are float16 -> uint8 [2, n]."""
    return scale.half().view(torch.uint8).view(-1, 2).t()


def _fit(x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The best scale for ``x = scale * q`` over the next-to-last dimension, and by how much it lowers the error."""
    dot, norm = (x * q).sum(-2, keepdim=True), (q * q).sum(-2, keepdim=True)
    scale = dot / norm.clamp_(min=1.0)  # no q but zeros: dot is zero too
    return scale, scale * dot


def _search(x: Tensor, low: int, high: int, levels: tuple[float, ...]) -> Tensor:
    """x [..., k, n] -> the best scale found for each column, [..., 1, n]; zero for a column of zeros."""
    top, bottom = x.amax(-2, keepdim=True), x.amin(-2, keepdim=True)
    inverse = _inverse(torch.where(top > -bottom, top, bottom))
    best = gain = torch.zeros_like(inverse)
    for level in levels:
        best, gain = _better(best, gain, *_fit(x, _rounded(x, inverse * level, low, high)))
    for _ in range(REFITS):
        best, gain = _better(best, gain, *_fit(x, _rounded(x, _inverse(best), low, high)))
    return best


def _better(best: Tensor, gain: Tensor, scale: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    wins = other > gain
    return torch.where(wins, scale, best), torch.where(wins, other, gain)


# ---- one scale for 32 weights --------------------------------------------------------------------------------------


def _flat(x: Tensor, bits: int, levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """x [32, n] -> scales [1, n], and whole numbers from 0 on as uint8 [32, n]."""
    middle = 1 << bits - 1
    scale = _half(_search(x, -middle, middle - 1, levels))
    q = _rounded(x, _inverse(scale), -middle, middle - 1)
    return scale, q.add_(middle).to(torch.uint8)


def nibbles_q4_0(scale: Tensor, q: Tensor) -> Tensor:
    """Scales float32 [1, n] and q uint8 [32, n] from 0 to 15 -> Q4_0 blocks, uint8 [18, n]."""
    return torch.cat((_bytes(scale), q[:16] | q[16:] << 4))


def _q4_0(x: Tensor) -> Tensor:
    return nibbles_q4_0(*_flat(x, 4, _LEVELS_4))


def _q5_0(x: Tensor) -> Tensor:
    scale, q = _flat(x, 5, _LEVELS_5)
    fifth = (q >> 4).view(4, 8, -1) << torch.arange(8, dtype=torch.uint8)[:, None]  # weight i: bit i of 32
    low = q & 15
    return torch.cat((_bytes(scale), fifth.sum(1, dtype=torch.uint8), low[:16] | low[16:] << 4))


def _q8_0(x: Tensor) -> Tensor:
    scale = _half(_search(x, -127, 127, _LEVELS_8))
    q = _rounded(x, _inverse(scale), -127, 127)
    return torch.cat((_bytes(scale), q.to(torch.int8).view(torch.uint8)))


# ---- 256 weights: scales of sub-blocks are whole numbers too, and are fitted together with the block's own ----------

ROUNDS = 4  # of: round weights, choose whole scales, fit the block's


def _q6_k(x: Tensor) -> Tensor:
    """Sixteen sub-blocks of 16: weight = d * scale * q."""
    parts = x.view(16, 16, -1)  # [sub-blocks, weights, n]
    fitted = _search(parts, -32, 31, _LEVELS_6)  # [16, 1, n]
    top, bottom = fitted.amax(0), fitted.amin(0)
    d = _half(torch.where(top > -bottom, top, bottom) / -128)  # [1, n]
    for _ in range(ROUNDS):
        scale = _rounded(fitted, _inverse(d), -128, 127)
        q = _rounded(parts, _inverse(d * scale), -32, 31)
        dot, norm = (parts * q).sum(1, keepdim=True), (q * q).sum(1, keepdim=True)  # [16, 1, n]
        fitted = dot / norm.clamp(min=1.0)
        scale = torch.where(norm > 0, _rounded(fitted, _inverse(d), -128, 127), scale)
        weight = (scale * scale * norm).sum(0)
        d = torch.where(weight > 0, _half((scale * dot).sum(0) / weight.clamp(min=1.0)), d)
    return _blocks_q6_k(d, scale, _rounded(parts, _inverse(d * scale), -32, 31))


def _blocks_q6_k(d: Tensor, scale: Tensor, q: Tensor) -> Tensor:
    whole = q.add_(32).to(torch.uint8).view(2, 4, 32, -1)  # [halves, quarters of a half, weights, n]
    low, high = whole & 15, whole >> 4
    nibbles = low[:, :2] | low[:, 2:] << 4  # [2, 2, 32, n]
    pairs = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6  # [2, 32, n]
    scales = scale[:, 0].to(torch.int8).view(torch.uint8)
    return torch.cat((nibbles.flatten(0, 2), pairs.flatten(0, 1), scales, _bytes(d)))


_LEVELS_AFFINE = (15.0, 14.5, 15.6, 14.0, 16.3, 13.5, 17.2)


def _q4_k(x: Tensor) -> Tensor:
    """Eight sub-blocks of 32: weight = d * scale * q - dmin * low, and none of the four is negative."""
    parts = x.view(8, 32, -1)  # [sub-blocks, weights, n]
    scale, low = _affine(parts)  # [8, 1, n] each, real numbers
    d, dmin = _half(scale.amax(0) / 63), _half(low.amax(0) / 63)  # [1, n]
    scale, low = _rounded(scale, _inverse(d), 0, 63), _rounded(low, _inverse(dmin), 0, 63)
    for _ in range(ROUNDS):
        sums = _Sums.of(parts, _affine_steps(parts, d * scale, dmin * low))
        scale, low = sums.whole(d, dmin, scale, low)
        d, dmin = sums.refit(d, dmin, scale, low)
    return _blocks_q4_k(d, dmin, scale, low, _affine_steps(parts, d * scale, dmin * low))


def _affine_steps(x: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    return (x + low).mul_(_inverse(scale)).round_().clamp_(0, 15)


def _affine(x: Tensor) -> tuple[Tensor, Tensor]:
    """The best ``x = scale * q - low`` found for each sub-block of x [8, 32, n]; neither is negative."""
    bottom = x.amin(1, keepdim=True).clamp_(max=0.0)
    inverse = _inverse(x.amax(1, keepdim=True) - bottom)
    best_scale = best_low = gain = torch.zeros_like(inverse)
    gain = gain - 1.0  # a sub-block of zeros gains nothing, and must be fitted all the same
    for turn in range(len(_LEVELS_AFFINE) + REFITS):
        if turn < len(_LEVELS_AFFINE):
            q = (x - bottom).mul_(inverse * _LEVELS_AFFINE[turn]).round_().clamp_(0, 15)
        else:
            q = _affine_steps(x, best_scale, best_low)
        scale, low, other = _Sums.of(x, q).fit()
        wins = other > gain
        best_scale, best_low = torch.where(wins, scale, best_scale), torch.where(wins, low, best_low)
        gain = torch.where(wins, other, gain)
    return best_scale, best_low


class _Sums:
    """All that the squared error depends on while q stays: sums over a sub-block, each [8, 1, n]."""

    def __init__(self, x: Tensor, q: Tensor, xq: Tensor, qq: Tensor, count: int) -> None:
        self.x, self.q, self.xq, self.qq, self.count = x, q, xq, qq, count

    @classmethod
    def of(cls, x: Tensor, q: Tensor) -> _Sums:
        return cls(*(part.sum(1, keepdim=True) for part in (x, q, x * q, q * q)), x.shape[1])

    def fit(self) -> tuple[Tensor, Tensor, Tensor]:
        """The real scale and low of least error, not negative, and by how much they lower it."""
        spread = self.count * self.qq - self.q * self.q  # zero where all q are the same
        both = (self.count * self.xq - self.q * self.x) / spread.clamp(min=1.0)
        low = (both * self.q - self.x) / self.count
        alone = self.xq / self.qq.clamp(min=1.0)  # with a low of zero
        free = (low >= 0) & (both >= 0)
        scale = torch.where(free, both, alone.clamp(min=0.0))
        low = torch.where(free, low, 0.0)
        return scale, low, scale * self.xq - low * self.x

    def whole(self, d: Tensor, dmin: Tensor, scale: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The best whole scale and low near the present ones: for each scale about the present, its best low."""
        best = self._error(d * scale, dmin * low)
        centre = scale
        for shift in (-2, -1, 0, 1, 2):
            other = (centre + shift).clamp(0, 63)
            fitted = (d * other * self.q - self.x) / self.count
            beside = _rounded(fitted, _inverse(dmin), 0, 63)
            error = self._error(d * other, dmin * beside)
            wins = error < best
            scale, low = torch.where(wins, other, scale), torch.where(wins, beside, low)
            best = torch.where(wins, error, best)
        return scale, low

    def _error(self, scale: Tensor, low: Tensor) -> Tensor:
        """Less the sum of xx, which nothing changes."""
        cross = scale * self.xq - low * self.x + scale * low * self.q
        return scale * scale * self.qq + self.count * low * low - 2 * cross

    def refit(self, d: Tensor, dmin: Tensor, scale: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """d and dmin of least error over the whole block, given everything else: two equations, two unknowns."""
        aa, ab = (scale * scale * self.qq).sum(0), (scale * low * self.q).sum(0)
        bb, ax, bx = self.count * (low * low).sum(0), (scale * self.xq).sum(0), (low * self.x).sum(0)
        spread = aa * bb - ab * ab
        new_d, new_dmin = (ax * bb - ab * bx) / spread, (ab * ax - aa * bx) / spread
        good = (spread > TINY) & (new_d > 0) & (new_dmin >= 0)
        only = (aa > TINY) & (bb <= 0)  # no low at all
        new_d = torch.where(good, new_d, torch.where(only, (ax / aa.clamp(min=TINY)).clamp(min=0.0), d))
        return _half(new_d), _half(torch.where(good, new_dmin, dmin))


def _blocks_q4_k(d: Tensor, dmin: Tensor, scale: Tensor, low: Tensor, q: Tensor) -> Tensor:
    s, m = scale[:, 0].to(torch.uint8), low[:, 0].to(torch.uint8)  # [8, n]
    first, second = s[:4] | (s[4:] >> 4) << 6, m[:4] | (m[4:] >> 4) << 6
    packed = (first, second, (s[4:] & 15) | (m[4:] & 15) << 4)
    whole = q.to(torch.uint8).view(4, 2, 32, -1)
    nibbles = whole[:, 0] | whole[:, 1] << 4  # [4, 32, n]
    return torch.cat((_bytes(d), _bytes(dmin), *packed, nibbles.flatten(0, 1)))


_PACK: dict[StoredType, Callable[[Tensor], Tensor]] = {
    StoredType.Q4_0: _q4_0,
    StoredType.Q4_K: _q4_k,
    StoredType.Q5_0: _q5_0,
    StoredType.Q6_K: _q6_k,
    StoredType.Q8_0: _q8_0,
}
