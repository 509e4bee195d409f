"""What one forward pass holds beside weights and cache: activations, the kernels' buffers, logits.

Over packed weights the buffers are those of native/ (kernel_set.h, product.cpp, layer.cpp, experts.cpp): each grows to
the largest call it ever served and is kept. Without the kernels torch makes and frees its own, and the sum of what one
layer holds at once is counted. Rows that nobody wants logits of leave at the last layer that writes
keys, so wider layers after it see one row a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketgem.config import LayerConfig, ModelConfig

PREFILL_CHUNK = 512  # prompt tokens a step: the scheduler's, unless it is told another number
QUANTISED = 1.5  # bytes a number as int8 with its group's scale and two kinds of sums, of 4 bytes each
FINEST_GROUP = 16  # columns that share a scale, at the least
TILE = 256 << 10  # unpacked weights of a task (kTileBytes), which come with scales and minima of 4 bytes a group
TILE_QUERIES, TILE_KEYS = 192, 64  # of an attention tile
NARROW = 4  # bytes of a float32


@dataclass(frozen=True)
class StepBytes:
    """Bytes that a pass holds. ``buffers`` stay after it, the others come and go."""

    buffers: int  # the kernels' own, for the whole call and for each thread's task
    activations: int  # rows between layers, per-layer vectors, and what torch needs within a layer
    logits: int  # of the rows that are sampled, with the sampler's copies

    @property
    def total(self) -> int:
        return self.buffers + self.activations + self.logits


def step_bytes(
    config: ModelConfig,
    *,
    rows: int,
    sequences: int,
    context: int,
    threads: int,
    packed: bool,
    itemsize: int,
) -> StepBytes:
    """The largest step: ``rows`` prompt tokens of one sequence beside one token of each other, after ``context``.

    packed: whether the compiled kernels run. itemsize: bytes of an activation.
    """
    rows += sequences - 1
    early = [layer for layer in config.layers if layer.index < config.last_writer] or list(config.layers[:1])
    buffers = _buffers(config, early, rows, threads) if packed else 0
    inside = 0 if packed else max(_torch_layer(config, layer, rows, context, itemsize) for layer in early)
    activations = max(_entering(config, rows, itemsize), _between(config, rows, itemsize) + inside)
    return StepBytes(buffers, activations, 4 * sequences * config.vocab_size * NARROW)


def _entering(config: ModelConfig, rows: int, itemsize: int) -> int:
    """Embeddings, and the per-layer vectors with the projection they are mixed with and the rows as they are stored."""
    numbers = config.hidden_size * (3 if config.altup is None else 2 + 2 * config.altup.num_inputs)
    if config.per_layer is not None:
        numbers += 3 * config.num_layers * config.per_layer.hidden_size
    return rows * numbers * max(itemsize, NARROW)


def _between(config: ModelConfig, rows: int, itemsize: int) -> int:
    """The residual stream going in and out of a layer, the per-layer vectors, and the angles of each rope."""
    streams = 1 if config.altup is None else config.altup.num_inputs
    numbers = 3 * streams * config.hidden_size
    if config.per_layer is not None:
        numbers += config.num_layers * config.per_layer.hidden_size
    angles = sum(rope.head_dim for rope in {layer.rope for layer in config.layers})
    return rows * (numbers * itemsize + 2 * angles * NARROW)


# ---- over packed weights ---------------------------------------------------------------------------------------------


def _buffers(config: ModelConfig, layers: list[LayerConfig], rows: int, threads: int) -> int:
    hidden = config.hidden_size
    queries = max(layer.num_heads * layer.head_dim for layer in layers)
    widest = max(max(layer.intermediate_size for layer in layers), queries, hidden)
    calls = rows * (hidden + hidden + widest + queries) * NARROW  # normed, product, and between a layer's calls
    corrections = rows * (widest + 2 * hidden) // FINEST_GROUP * 2 * NARROW
    return calls + int(rows * widest * QUANTISED) + corrections + threads * _task(layers, rows) + _experts(config, rows)


def _task(layers: list[LayerConfig], rows: int) -> int:
    """A thread's scratch: a tile of weights, its outputs twice; or a tile of queries with keys and values."""
    columns = max(16, TILE // layers[0].intermediate_size)
    product = TILE + 2 * TILE // FINEST_GROUP * NARROW + 2 * rows * columns * NARROW
    widest = max(layer.head_dim for layer in layers)
    attention = (TILE_QUERIES * (2 * widest + TILE_KEYS) + 2 * widest * TILE_KEYS) * NARROW
    return product + attention


def _experts(config: ModelConfig, rows: int) -> int:
    """The rows once for each expert they chose: gathered, between the matrices, and their products, twice in order."""
    if config.experts is None:
        return 0
    pairs, hidden, width = rows * config.experts.top_k, config.hidden_size, config.experts.intermediate_size
    gathered = pairs * (3 * hidden + width) * NARROW
    corrections = pairs * (2 * hidden + width) // FINEST_GROUP * 2 * NARROW
    return gathered + int(pairs * hidden * QUANTISED) + corrections


# ---- in torch --------------------------------------------------------------------------------------------------------


def _torch_layer(config: ModelConfig, layer: LayerConfig, rows: int, context: int, itemsize: int) -> int:
    """The larger of attention (queries, repeated keys and values, mask) and MLP (gate, up and their product)."""
    keys = context if layer.window is None else min(context, layer.window + rows)
    queries = layer.num_heads * layer.head_dim
    attention = rows * 4 * queries * itemsize + 2 * keys * queries * itemsize + rows * keys * (1 + NARROW + 8)
    width = layer.intermediate_size
    if config.experts is not None:
        width += 3 * config.experts.intermediate_size * config.experts.top_k // 2
    return max(attention, rows * 3 * width * itemsize) + rows * 3 * config.hidden_size * NARROW
