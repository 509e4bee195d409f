"""Every matrix of a model by kind: whether this run trains it, how many there are, what that costs, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from pocketgem.checkpoint import names
from pocketgem.config import ModelConfig
from pocketgem.model.blocks import Blocks
from pocketgem.model.experts import Router
from pocketgem.model.gemma import Gemma
from pocketgem.model.layers import RMSNorm
from pocketgem.tune.recipe import TrainingPlan, kind_of

STATE_BYTES = 16  # of a trained parameter: itself, its gradient and Adam's two sums, each float32


@dataclass(frozen=True)
class Part:
    """One kind of weights.

    count, trained: how many there are, and how many of them get a change. parameters, bytes: of the base, as loaded.
    added, added_bytes: of the changes, the optimizer's sums and gradients included.
    """

    kind: str
    count: int
    trained: int
    parameters: int
    bytes: int
    added: int
    why: str

    @property
    def added_bytes(self) -> int:
        return self.added * STATE_BYTES


def parts(model: Gemma, plan: TrainingPlan) -> list[Part]:
    """All of a text model, matrices that can be trained first, then the rest; and the towers beside it."""
    held: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        if kind := _kind(path, module):
            held.setdefault(kind, []).append((names.hf_name(path), module))
    found = [_part(kind, modules, model.config, plan) for kind, modules in held.items()]
    return [*sorted(found, key=lambda part: -part.trained), *_tables(model), *_towers(model.config)]


def _kind(path: str, module: nn.Module) -> str | None:
    if isinstance(module, Blocks) or not path:
        return None
    if isinstance(module, RMSNorm):
        return "norms"
    if isinstance(module, Router) or ".router." in path:
        return "router" if isinstance(module, Router) else None
    if path.endswith(".experts"):
        return "experts"
    if path == "embed_tokens":
        return path
    held = any(True for _ in module.parameters(recurse=False)) or hasattr(module, "blocks")
    return kind_of(names.hf_name(path)) if held and hasattr(module, "out_features") else None


def _part(kind: str, modules: list[tuple[str, nn.Module]], config: ModelConfig, plan: TrainingPlan) -> Part:
    mine = {name: shape for name, shape in plan.shapes.items() if _belongs(name, kind, modules)}
    trained = len({name.removesuffix(".gate_up_proj").removesuffix(".down_proj") for name in mine})
    if kind != "experts":
        trained = len(mine)
    sizes = [_size(module) for _, module in modules]
    added = sum(map(plan.of, mine.values()))
    why = _why(kind, len(modules), config, bool(mine))
    return Part(kind, len(modules), trained, sum(size for size, _ in sizes), sum(size for _, size in sizes), added, why)


def _belongs(name: str, kind: str, modules: Iterable[tuple[str, nn.Module]]) -> bool:
    if kind == "experts":
        return ".experts." in name
    return any(name == other for other, _ in modules)


def _size(module: nn.Module) -> tuple[int, int]:
    """Parameters and bytes of a module, blocks as they are stored."""
    count = sum(parameter.numel() for parameter in module.parameters())
    size = sum(parameter.nbytes for parameter in module.parameters())
    for blocks in (one for one in module.modules() if isinstance(one, Blocks)):
        count, size = count + len(blocks.data) * blocks.cols, size + blocks.data.nbytes
    return count, size


def _why(kind: str, count: int, config: ModelConfig, trained: bool) -> str:
    """A reason in a few words: what the layout has, or why a kind is left alone."""
    if kind in _LEFT:
        return _LEFT[kind]
    layers, notes = config.layers, []
    borrowing = sum(not layer.writes_kv for layer in layers)
    if kind in ("k_proj", "v_proj") and borrowing:
        notes.append(f"{borrowing} layers read another layer's keys and have none")
    keyed = sum(layer.writes_kv and layer.value_is_key for layer in layers)
    if kind == "k_proj" and keyed:
        notes.append(f"in {keyed} layers it also makes the values")
    if kind == "v_proj" and keyed:
        notes.append(f"in {keyed} layers the values are the keys")
    if not trained:
        notes.append(_UNASKED.get(kind, "not named by --modules"))
    return "; ".join(notes)


_LEFT = {
    "norms": "small, and every layer's scale hangs on them",
    "router": "left alone, so that each token goes to the expert that was trained for it; the shift is logged",
    "lm_head": "read by every token: a change of it is no small file",
    "embed_tokens": "a row a token: few rows of it would be reached",
}
_UNASKED = {
    "experts": "stacks of experts: name experts in --modules",
    "per_layer_input_gate": "lets the per-layer vector in: name it in --modules",
    "per_layer_projection": "lets the per-layer vector in: name it in --modules",
}


def _tables(model: Gemma) -> list[Part]:
    per_layer = model.config.per_layer
    if per_layer is None:
        return []
    count = per_layer.vocab_size * per_layer.hidden_size * model.config.num_layers
    return [Part("per-layer table", 1, 0, count, 0, 0, "a row a token, read from its file; never trained")]


def _towers(config: ModelConfig) -> list[Part]:
    """What sees and hears is not part of the text model: its clipped linears keep their ranges."""
    said: Mapping[str, object] = {"vision tower": config.vision, "audio tower": config.audio}
    why = "not loaded for training; its linears are clipped to ranges that a change would leave"
    return [Part(name, 1, 0, 0, 0, 0, why) for name, section in said.items() if section is not None]
