"""Tiny twins: every released layout shrunk to a few narrow layers with random weights, as Hugging Face would save them.

Each keeps what makes its layout itself: windows shorter than the test prompt, two head sizes, shared keys, experts ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

SLIDING, FULL = "sliding_attention", "full_attention"
VOCAB = 600


@dataclass(frozen=True)
class Widths:
    """How wide a twin is. ``NARROW`` has odd sizes; ``BLOCKS`` multiples of 32, as block types and kernels need."""

    hidden: int
    head: int
    full_head: int  # Gemma 4's on full layers
    mlp: int
    per_layer: int
    laurel: int
    expert: int

    @property
    def common(self) -> dict[str, Any]:
        return {
            "vocab_size": VOCAB,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_attention_heads": 4,
            "head_dim": self.head,
            "sliding_window": 8,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        }

    @property
    def gemma4(self) -> dict[str, Any]:
        return {**self.common, "global_head_dim": self.full_head, "final_logit_softcapping": 30.0}

    @property
    def gemma4_flat(self) -> dict[str, Any]:
        return {**self.gemma4, "hidden_size_per_layer_input": 0}


NARROW = Widths(hidden=48, head=16, full_head=32, mlp=64, per_layer=12, laurel=6, expert=24)
BLOCKS = Widths(hidden=96, head=32, full_head=64, mlp=160, per_layer=32, laurel=32, expert=32)
TINY_VISION = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 32, "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 64,
}  # fmt: skip


def gemma3(widths: Widths) -> nn.Module:
    config = transformers.Gemma3TextConfig(
        **widths.common,
        num_hidden_layers=5,
        num_key_value_heads=2,
        layer_types=[SLIDING, SLIDING, FULL, SLIDING, FULL],
        query_pre_attn_scalar=12,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    return transformers.Gemma3ForCausalLM(config)


def gemma3_multimodal(widths: Widths) -> nn.Module:
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    text = {**widths.common, "num_hidden_layers": 6, "num_key_value_heads": 1}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration(config)


def gemma3n(widths: Widths) -> nn.Module:
    config = transformers.Gemma3nTextConfig(
        **{**widths.common, "intermediate_size": [widths.mlp] * 3 + [widths.mlp + 32] * 3},
        num_hidden_layers=6,
        num_key_value_heads=2,
        layer_types=[SLIDING, SLIDING, FULL, FULL, SLIDING, FULL],
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB - 20,
        hidden_size_per_layer_input=widths.per_layer,
        laurel_rank=widths.laurel,
        activation_sparsity_pattern=[0.95, 0.8, 0.0, 0.0, 0.0, 0.0],
    )
    return transformers.Gemma3nForCausalLM(config)


def e2b(widths: Widths) -> nn.Module:
    text = {
        **widths.gemma4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": widths.per_layer,
    }
    audio = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32,
        "subsampling_conv_channels": [8, 4],
    }  # fmt: skip
    config = transformers.Gemma4Config(text_config=text, vision_config=TINY_VISION, audio_config=audio)
    return transformers.Gemma4ForConditionalGeneration(config)


def e4b(widths: Widths) -> nn.Module:
    config = transformers.Gemma4TextConfig(
        **widths.gemma4,
        num_hidden_layers=6,
        num_key_value_heads=2,
        layer_types=[SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL],
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=widths.per_layer,
    )
    return transformers.Gemma4ForCausalLM(config)


def unified_12b(widths: Widths) -> nn.Module:
    config = transformers.Gemma4UnifiedTextConfig(
        **widths.gemma4,
        num_hidden_layers=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        attention_k_eq_v=True,
    )
    return transformers.Gemma4UnifiedForCausalLM(config)


def moe_26b(widths: Widths) -> nn.Module:
    text = {
        **widths.gemma4_flat,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "num_global_key_value_heads": 2,
        "layer_types": [SLIDING, SLIDING, FULL, FULL],
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 3,
        "moe_intermediate_size": widths.expert,
        "use_bidirectional_attention": "vision",
    }
    config = transformers.Gemma4Config(text_config=text, vision_config=TINY_VISION, audio_config=None)
    return transformers.Gemma4ForConditionalGeneration(config)


def dense_31b(widths: Widths) -> nn.Module:
    config = transformers.Gemma4TextConfig(
        **widths.gemma4_flat,
        num_hidden_layers=6,
        num_key_value_heads=4,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        use_bidirectional_attention="vision",
    )
    return transformers.Gemma4ForCausalLM(config)


LAYOUTS: dict[str, Callable[[Widths], nn.Module]] = {
    "gemma3": gemma3,
    "gemma3-multimodal": gemma3_multimodal,
    "gemma3n": gemma3n,
    "E2B": e2b,
    "E4B": e4b,
    "12B": unified_12b,
    "26B-A4B": moe_26b,
    "31B": dense_31b,
}


@dataclass(frozen=True)
class Twin:
    """One layout: the oracle, and the folder it was saved to."""

    name: str
    oracle: nn.Module
    folder: Path


def make_twin(name: str, folder: Path, widths: Widths = NARROW) -> Twin:
    """Build, randomise and save the twin of a layout."""
    torch.manual_seed(sum(map(ord, name)))
    oracle = LAYOUTS[name](widths).eval()
    oracle.set_attn_implementation("eager")
    with torch.no_grad():
        for key, tensor in [*oracle.named_parameters(), *oracle.named_buffers()]:
            randomise(key, tensor)
    oracle.save_pretrained(folder)
    return Twin(name, oracle, folder)


def randomise(key: str, tensor: torch.Tensor) -> None:
    """Weights that matter everywhere: no scale is left at the one or zero that would hide a missing multiplication."""
    leaf = key.split(".")[-1]
    if "norm" in key and leaf == "weight":
        tensor.add_(torch.randn_like(tensor) * 0.2)
    elif leaf in ("layer_scalar", "scale", "per_expert_scale", "correct_output_scale"):
        tensor.copy_(torch.rand_like(tensor) * 0.6 + 0.7)
    elif "coefs" in key:
        tensor.normal_(std=0.2)  # AltUp multiplies streams by these: larger ones amplify rounding, not mistakes
    elif leaf in ("weight", "gate_up_proj", "down_proj") and tensor.ndim > 1:
        tensor.normal_(std=1.5 * tensor.shape[-1] ** -0.5)


def oracle_logits(twin: Twin, ids: list[int]) -> torch.Tensor:
    """The reference's logits ``[tokens, vocab]`` for one sequence, computed without a cache."""
    with torch.no_grad():
        return twin.oracle(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
