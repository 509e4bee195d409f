"""Twins' towers as GGUF ``mmproj`` files, written with the format's own library as llama.cpp's converter writes them.

The converter's steps (its ``conversion/gemma.py``), restated: names come from the library's table where it has them;
patch weights are turned from row, column, colour to colour, row, column; the 12B's position table from place, axis to
axis, place; Gemma 3's soft norm is written with one added; scalars become vectors of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from torch import Tensor

Change = Callable[[str, Tensor], tuple[str, Tensor] | None]
PROJECTORS = {"gemma4": "gemma4v", "gemma4_unified": "gemma4uv", "gemma3": "gemma3"}
_UNIFIED = {  # newer than the library's table
    "model.vision_embedder.patch_ln1": "v.patch_norm.1",
    "model.vision_embedder.patch_ln2": "v.patch_norm.2",
    "model.vision_embedder.patch_dense": "v.patch_embd",
    "model.vision_embedder.pos_norm": "v.patch_norm.3",
    "model.vision_embedder.pos_embedding": "v.position_embd",
    "model.embed_vision.embedding_projection": "mm.input_projection",
}


def write_mmproj(folder: Path, path: Path, change: Change = lambda name, tensor: (name, tensor), **keys: Any) -> Path:
    """The vision tower of a saved twin. ``change`` may rename, alter or leave out what is written; ``keys`` replace
    metadata, with ``_`` for dots and None for none."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = PROJECTORS[config["model_type"]]
    writer = gguf.GGUFWriter(path, "clip")
    metadata = _metadata(config, kind) | {key.replace("__", "."): value for key, value in keys.items()}
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor in _tensors(load_file(folder / "model.safetensors"), kind, config["vision_config"]).items():
        if (kept := change(name, tensor)) is not None:
            writer.add_tensor(kept[0], kept[1].contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if key == "general.architecture":
        writer.kv_data[0][key].value = value
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _metadata(config: Mapping[str, Any], kind: str) -> dict[str, object]:
    vision, text = config["vision_config"], config["text_config"]
    metadata: dict[str, object] = {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": text["hidden_size"],
        "clip.vision.image_size": vision.get("image_size", 224),
        "clip.vision.patch_size": vision["patch_size"],
        "clip.vision.embedding_length": vision.get("hidden_size", vision.get("mm_embed_dim")),
        "clip.vision.feed_forward_length": vision.get("intermediate_size", 0),
        "clip.vision.block_count": vision.get("num_hidden_layers", 0),
        "clip.vision.attention.head_count": vision.get("num_attention_heads", 0),
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.image_mean": [0.0, 0.0, 0.0],
        "clip.projector_type" if kind == "gemma3" else "clip.vision.projector_type": kind,
    }
    if kind == "gemma3":
        side = round(config["mm_tokens_per_image"] ** 0.5)
        metadata["clip.vision.projector.scale_factor"] = vision["image_size"] // vision["patch_size"] // side
    return metadata


def _tensors(stored: Mapping[str, Tensor], kind: str, vision: Mapping[str, Any]) -> dict[str, Tensor]:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision.get("num_hidden_layers", 1))
    found = {}
    for name, tensor in stored.items():
        if "language_model" in name or name.startswith("lm_head"):
            continue
        if kind == "gemma3":
            found |= _siglip(table, name, tensor)
        elif kind == "gemma4v":
            found |= _gemma4(table, name, tensor)
        else:
            found |= _unified(name, tensor, vision["patch_size"] * vision["pooling_kernel_size"])
    return found


def _gemma4(table: gguf.TensorNameMap, name: str, tensor: Tensor) -> dict[str, Tensor]:
    name = name.replace("model.vision_tower.encoder.", "vision_model.model.").replace(".linear.weight", ".weight")
    if name.endswith("position_embedding_table"):
        name += ".weight"
    if name.endswith("input_proj.weight"):
        side = round((tensor.shape[1] // 3) ** 0.5)
        tensor = tensor.view(-1, side, side, 3).permute(0, 3, 1, 2)
    stem, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "input_min", "input_max", "output_min", "output_max"):  # std_bias, std_scale
        return {_found(table, name): tensor}
    stem = stem if leaf == "weight" or table.get_name(stem) else f"{stem}.linear"
    return {f"{_found(table, stem)}.{leaf}": tensor if tensor.ndim else tensor[None]}


def _found(table: gguf.TensorNameMap, name: str) -> str:
    for spelled in (name, f"{name}.linear"):
        if (gguf_name := table.get_name(spelled)) is not None:
            return gguf_name
    raise KeyError(name)


def _unified(name: str, tensor: Tensor, side: int) -> dict[str, Tensor]:
    if name.endswith("pos_embedding"):
        return {"v.position_embd.weight": tensor.permute(1, 0, 2)}
    if "patch_dense.weight" in name or ".patch_ln1." in name:
        place = torch.arange(3 * side * side).view(side, side, 3).permute(2, 0, 1).flatten()
        tensor = tensor[..., place]
    stem, _, leaf = name.rpartition(".")
    return {f"{_UNIFIED[stem]}.{leaf}": tensor}


def _siglip(table: gguf.TensorNameMap, name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name.endswith("soft_emb_norm.weight"):
        tensor = tensor + 1.0
    name = name.removeprefix("model.").replace("_weight", ".weight")
    stem, _, leaf = name.replace("vision_tower.", "vision_tower.vision_model.", 1).rpartition(".")
    return {f"{_found(table, stem)}.{leaf}": tensor}
