"""What a step will hold at once, foretold: rows that the way back needs, and the trained parts with their sums.

Rows are counted module by module: what each keeps until its gradient is known. What it leaves out are the products of
one layer while it runs. A forecast: it was not held against the kernel's count yet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from pocketgem.config import LayerConfig, ModelConfig
from pocketgem.model.gemma import Gemma
from pocketgem.tune.batches import Batches
from pocketgem.tune.data import Example
from pocketgem.tune.head import BLOCK
from pocketgem.tune.planner import STATE_BYTES
from pocketgem.tune.recipe import Recipe, TrainingPlan

MEMINFO = Path("/proc/meminfo")
LOOKED_AT = 200  # steps, for the largest
SLACK = 96 << 20  # the allocator's and the products' own


def needed(model: Gemma, plan: TrainingPlan, recipe: Recipe, examples: Sequence[Example]) -> int:
    """Bytes beside the loaded weights at the worst moment of a step."""
    rows, learned = _largest(recipe, examples)
    each, config = model.dtype.itemsize, model.config
    kept = [_row(layer, config, recipe.forgetful) for layer in config.layers]
    working = max(_row(layer, config, False) for layer in config.layers) if recipe.forgetful else 0
    head = (BLOCK * 2 + config.hidden_size * 4) * learned * 4
    return plan.parameters * STATE_BYTES + rows * (sum(kept) + working) * each + head + SLACK


def _row(layer: LayerConfig, config: ModelConfig, forgetful: bool) -> int:
    """Numbers of one token that a layer keeps."""
    hidden, heads = config.hidden_size, layer.num_heads * layer.head_dim
    keys = 2 * layer.num_kv_heads * layer.head_dim if layer.writes_kv else 0
    if forgetful:
        return 3 * hidden + 3 * keys
    routed = 0 if config.experts is None else config.experts.top_k * (5 * config.experts.intermediate_size + 3 * hidden)
    gate = 0 if config.per_layer is None else 4 * config.per_layer.hidden_size + 2 * hidden
    return 8 * hidden + 5 * heads + 3 * keys + 4 * layer.intermediate_size + routed + gate


def _largest(recipe: Recipe, examples: Sequence[Example]) -> tuple[int, int]:
    """(rows, learned rows) that are in memory at once."""
    batches = Batches(examples, recipe.batch, recipe.tokens, recipe.seed)
    most = (0, 0)
    for step in range(min(recipe.steps, LOOKED_AT)):
        batch = batches.of(step)
        size = -(-len(batch) // recipe.accumulate)
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            most = max(most, (sum(len(one.ids) for one in part), sum(one.learned for one in part)))
    return most


def available(device: torch.device) -> int | None:
    """Bytes that a process may still take; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    pages = "SC_AVPHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages in os.sysconf_names else None
