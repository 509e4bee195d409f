"""Tiny models on disk, complete enough to run: random weights, a tokenizer of 320 tokens, and a template if wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pocketgem.config import from_hf
from pocketgem.config.counts import decoder_shapes
from pocketgem.config.towers import vision_shapes
from tests.text_fixtures import BYTE, CONTROL, NORMAL, tokenizer_json

VOCAB = 320
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "\x1b[2J")
WORDS = (*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "qu")
CONFIG: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "max_position_embeddings": 32_768,
    "query_pre_attn_scalar": 16,
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 16}  # fmt: skip
TEMPLATE = """{{ bos_token }}
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}
{%- if enable_thinking or system -%}<|turn>system
{% if enable_thinking %}<|think|>
{% endif %}{{ system }}<turn|>
{% endif -%}
{%- for message in messages if message['role'] != 'system' -%}
<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{{ message['content'] }}<turn|>
{% endfor -%}
<|turn>model
"""


def save_model(
    folder: Path,
    *,
    template: str | None = None,
    without: Collection[str] = (),
    change: Callable[[torch.Tensor], torch.Tensor] = lambda weights: weights,
    vision: bool = False,
) -> Path:
    """A Hugging Face folder. ``without`` names tensors to leave out; ``change`` is applied to the token embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    eyes = {"model_type": "gemma3", "text_config": CONFIG, "vision_config": VISION, "mm_tokens_per_image": 4}
    config = eyes if vision else CONFIG
    shapes = decoder_shapes(from_hf(config)) | vision_shapes(from_hf(config))
    generator = torch.Generator().manual_seed(7)
    weights = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    weights["embed_tokens.weight"][: -len(WORDS)] = 0  # so that a greedy answer is letters, and has no end
    weights["embed_tokens.weight"] = change(weights["embed_tokens.weight"])
    kept = {f"model.{name}": tensor for name, tensor in weights.items() if name not in without}
    save_file(kept, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocabulary())))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def vocabulary() -> dict[str, Any]:
    """GGUF-style keys of a small tokenizer: bytes, letters, and one merge."""
    typed = [(text, CONTROL) for text in SPECIAL]
    typed += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)] + [(word, NORMAL) for word in WORDS]
    assert len(typed) == VOCAB
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": [text for text, _ in typed],
        "tokenizer.ggml.token_type": [kind for _, kind in typed],
        "tokenizer.ggml.merges": ["q u"],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
    }
