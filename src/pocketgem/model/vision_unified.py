"""The 12B sees without an encoder: patches of 48 x 48 pixels become rows by one dense layer and three norms.

Module names are the checkpoint's. Source: transformers' gemma4_unified, the oracle of ``tests/test_vision.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketgem.config.fields import Fields
from pocketgem.model.tower import LayerNorm, Projector, WideLinear, check_grid

EPS = 1e-5  # of the layer norms: torch's own default, which the reference takes; the config's is the projector's


class PatchDense(nn.Module):
    """norm, dense, norm, learned places of columns and rows, norm."""

    def __init__(self, numbers: int, hidden: int, places: int) -> None:
        super().__init__()
        self.patch_ln1, self.patch_ln2 = LayerNorm(numbers, EPS), LayerNorm(hidden, EPS)
        self.patch_dense = WideLinear(numbers, hidden, bias=True)
        self.pos_embedding = nn.Parameter(torch.empty(places, 2, hidden))
        self.pos_norm = LayerNorm(hidden, EPS)

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        x = self.patch_ln2(self.patch_dense(self.patch_ln1(values)))
        for axis in (0, 1):  # column, row
            x = x + self.pos_embedding[positions[:, axis], axis]
        out: Tensor = self.pos_norm(x)
        return out


class UnifiedVision(nn.Module):
    """values ``[n, 3 * side**2]``, positions ``[n, 2]`` (column, row) -> ``[n, text_hidden]``.

    Raises MediaError for patches that do not fit. Making one raises FormatError for values no config may hold.
    """

    def __init__(self, fields: Fields, text_hidden: int) -> None:
        super().__init__()
        side = fields.int("patch_size", 16) * fields.int("pooling_kernel_size", 3)
        self.numbers, self.places = 3 * side * side, fields.int("mm_posemb_size", 1120)
        hidden, eps = fields.int("mm_embed_dim", 3840), fields.float("rms_norm_eps", 1e-6, high=1.0)
        self.vision_embedder = PatchDense(self.numbers, hidden, self.places)
        self.embed_vision = Projector(fields.int("output_proj_dims", 3840), text_hidden, eps)

    def forward(self, values: Tensor, positions: Tensor) -> Tensor:
        check_grid(values, positions, self.numbers, 1, self.places)
        rows: Tensor = self.embed_vision(self.vision_embedder(values, positions))
        return rows
