"""How a batch's tokens fall on the experts, before a training and after it.

A router that is left alone may still choose otherwise: it sees rows that the changes below it have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pocketgem.model.experts import Router
from pocketgem.model.gemma import Gemma
from pocketgem.model.whole import WholeStep
from pocketgem.tune.data import Example


@torch.no_grad()
def expert_load(model: Gemma, batch: Sequence[Example]) -> dict[str, Tensor]:
    """By router: the share of choices that each expert got, ``[experts]``. Empty for a model without experts."""
    found: dict[str, Tensor] = {}
    routers = [(path, module) for path, module in model.named_modules() if isinstance(module, Router)]

    def watched(path: str) -> Callable[[nn.Module, object, tuple[Tensor, Tensor]], None]:
        return lambda router, _, chosen: found.update({path: _shares(router, chosen)})

    hooks = [module.register_forward_hook(watched(path)) for path, module in routers]
    try:
        if hooks:
            ids = torch.tensor([id for example in batch for id in example.ids])
            model(model.embed(ids), WholeStep.of([len(example.ids) for example in batch], model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _shares(router: nn.Module, chosen: tuple[Tensor, Tensor]) -> Tensor:
    count = len(router.per_expert_scale)  # type: ignore[arg-type]
    return torch.bincount(chosen[1].flatten().cpu(), minlength=count) / chosen[1].numel()


def shift(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, object]:
    """Total variation of each router's shares, from 0 (as before) to 1, and the shares themselves."""
    return {
        path.replace(".block", "").removesuffix(".routed.router"): {
            "moved": round(float((after[path] - shares).abs().sum() / 2), 6),
            "before": [round(share, 6) for share in shares.tolist()],
            "after": [round(share, 6) for share in after[path].tolist()],
        }
        for path, shares in before.items()
        if path in after
    }
