"""A step of decode in one kernel call: all fused layers one after another, with nothing in Python between them.

``Gemma.run_layers`` is the definition; this is the same loop for steps in which every row goes to the end, which are
those where a millisecond of Python counts. The calls of the kernels are the same, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pocketgem.config import LayerConfig
from pocketgem.kernels.compute import Compute
from pocketgem.model.cache import Step
from pocketgem.model.fused import FusedLayer
from pocketgem.model.gemma import Gemma, Inputs
from pocketgem.model.places import Places


class StackedLayers:
    """``Gemma.forward`` for steps whose rows all want logits, over layers that are fused whole."""

    def __init__(self, model: Gemma, layers: Sequence[FusedLayer], compute: Compute) -> None:
        self.model = model
        self.writers = [layer.index for layer in model.config.layers if layer.writes_kv]
        self.places = Places(self.writers)
        self.stack = compute.layers(
            [(fused.layer, *self._numbers(layer)) for layer, fused in zip(model.config.layers, layers, strict=True)]
        )

    def _numbers(self, layer: LayerConfig) -> tuple[int, int]:
        """Of its angles among the model's, and of the layer whose keys it reads among those that write."""
        angles, source = list(self.model.tables.inverse), layer.index if layer.writes_kv else layer.kv_layer
        return angles.index(layer.rope), self.writers.index(source)

    def takes(self, step: Step, *, adapters: bool) -> bool:
        """Whether no row of the step leaves early or sees past its own position."""
        return step.last is None and len(step.logit_rows) == len(step.positions)

    def ready(self, inputs: Inputs, step: Step) -> Callable[[], Tensor]:
        """See ``Gemma.ready``."""
        tables = list(self.model.tables.at(step.positions, inputs.x.dtype).values())
        x, places = inputs.x.clone(), self.places.of(step)

        def run() -> Tensor:
            self.stack.run_(x, tables, step.positions, places, inputs.per_layer)
            hidden: Tensor = self.model.norm(x)
            return hidden

        return run


def stack(model: Gemma, compute: Compute) -> None:
    """Let decode run in one call, where all layers are fused whole and have no routed experts."""
    layers = [layer for layer in model.layers if isinstance(layer, FusedLayer) and layer.plain.routed is None]
    if len(layers) == len(model.layers):
        model.shortcut = StackedLayers(model, layers, compute)
