"""Bytes: of weights that one step reads, and those a second that this machine can read."""

from __future__ import annotations

import re

import torch

from pocketgem.bench.protocol import timed
from pocketgem.checkpoint.load import Checkpoint
from pocketgem.config import ModelConfig, decoder_shapes
from pocketgem.config.counts import group_of

ARRAY = 512 << 20  # bytes read: many times what any cache holds
TRIES = 5


def weight_bytes(checkpoint: Checkpoint, rows: int = 1) -> int:
    """Bytes of the file's own weights that one step over ``rows`` sequences reads, each tensor at most once.

    Tables looked up by id cost a row a sequence: the per-layer one, and the token embedding where the head is another
    tensor. Of routed experts only those count that are expected to be chosen, each as likely as another. Tensors the
    model has no use for (keys of layers that share another's) are not read.
    """
    config, shapes = checkpoint.config, decoder_shapes(checkpoint.config)
    return sum(
        int(tensor.nbytes * _share(name, shapes[name][0], config, rows))
        for name, tensor in checkpoint.tensors.items()
        if name in shapes
    )


def _share(name: str, entries: int, config: ModelConfig, rows: int) -> float:
    """The part of a tensor that one step reads."""
    group = group_of(name)
    if group == "per_layer_table" or (group == "embedding" and not config.tied_head):
        return min(1.0, rows / entries)
    if group == "experts" and config.experts is not None:
        missed = 1 - config.experts.top_k / config.experts.num_experts
        return float(1 - missed**rows)
    return 1.0


def read_bandwidth(threads: int, size: int = ARRAY) -> float:
    """GB/s (10^9) of summing a large array with ``threads`` threads: the best of several tries."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = torch.ones(size // 8, dtype=torch.int64)
        return size / min(timed(data.sum) for _ in range(TRIES)) / 1e9
    finally:
        torch.set_num_threads(before)


def available_memory() -> int | None:
    """Bytes that could be used without swapping; None where the kernel does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = re.search(r"^MemAvailable:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
