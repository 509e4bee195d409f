"""Tiny twins with eyes: every layout that sees, narrow, with random towers whose every number matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.twins import FULL, NARROW, SLIDING, VOCAB, randomise

IMAGE = 4  # the placeholder's id; prompts' other ids are from 5 on
ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "patch_size": 4, "pooling_kernel_size": 3, "position_embedding_size": 64,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 24,
    "patch_size": 4, "vision_use_head": False,
}  # fmt: skip


def e2b() -> nn.Module:
    text = {
        **NARROW.gemma4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": NARROW.per_layer,
    }
    return _gemma4(text, {**ENCODER, "use_clipped_linears": True})


def moe_26b() -> nn.Module:
    experts = {
        "enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": NARROW.expert,
        "layer_types": [SLIDING, SLIDING, FULL, FULL], "num_hidden_layers": 4,
    }  # fmt: skip
    return _gemma4(_big_text() | experts, {**ENCODER, "standardize": True})


def dense_31b() -> nn.Module:
    return _gemma4(_big_text() | {"num_hidden_layers": 6}, {**ENCODER, "standardize": True})


def _big_text() -> dict[str, Any]:
    return {
        **NARROW.gemma4_flat,
        "num_key_value_heads": 4,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "use_bidirectional_attention": "vision",
    }


def _gemma4(text: dict[str, Any], vision: dict[str, Any]) -> nn.Module:
    config = transformers.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IMAGE, audio_token_id=VOCAB + 1,
        video_token_id=VOCAB + 2,
    )  # fmt: skip
    return transformers.Gemma4ForConditionalGeneration(config)


def unified_12b() -> nn.Module:
    text = {
        **NARROW.gemma4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "attention_k_eq_v": True,
        "use_bidirectional_attention": "vision",
    }
    vision = {
        "patch_size": 4, "pooling_kernel_size": 3, "mm_embed_dim": 40, "mm_posemb_size": 24, "output_proj_dims": 40,
    }  # fmt: skip
    config = transformers.Gemma4UnifiedConfig(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IMAGE, audio_token_id=VOCAB + 1,
        video_token_id=VOCAB + 2,
    )  # fmt: skip
    return transformers.Gemma4UnifiedForConditionalGeneration(config)


def gemma3() -> nn.Module:
    text = {**NARROW.common, "num_hidden_layers": 6, "num_key_value_heads": 1}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=SIGLIP, mm_tokens_per_image=9, image_token_index=IMAGE
    )
    return transformers.Gemma3ForConditionalGeneration(config)


SEEING: dict[str, Callable[[], nn.Module]] = {
    "E2B": e2b,
    "26B-A4B": moe_26b,
    "31B": dense_31b,
    "12B": unified_12b,
    "gemma3": gemma3,
}


@dataclass(frozen=True)
class Image:
    """Patches of a picture that never was."""

    values: Tensor  # [n, numbers], 0 to 1
    positions: Tensor  # [n, 2], column and row
    tokens: int


@dataclass(frozen=True)
class SeeingTwin:
    """One layout: the oracle, and the folder it was saved to."""

    name: str
    oracle: nn.Module
    folder: Path

    def image(self, seed: int, down: int, across: int) -> Image:
        """A random picture of ``down`` x ``across`` tokens; Gemma 3's are all of 3 x 3."""
        generator = torch.Generator().manual_seed(seed)
        side, pool = (12, 1) if self.name == "12B" else (4, 2 if self.name == "gemma3" else 3)
        down, across = (3, 3) if self.name == "gemma3" else (down, across)
        rows, columns = torch.meshgrid(torch.arange(down * pool), torch.arange(across * pool), indexing="ij")
        values = torch.rand(rows.numel(), 3 * side * side, generator=generator)
        return Image(values, torch.stack((columns.flatten(), rows.flatten()), 1), down * across)

    def features(self, image: Image) -> Tensor:
        """The oracle's rows for one picture: ``[tokens, hidden]``."""
        with torch.no_grad():
            found = self.oracle.model.get_image_features(**self.pixels([image]), return_dict=True).pooler_output
        return found[0].reshape(image.tokens, -1)

    def logits(self, ids: list[int], images: list[Image]) -> Tensor:
        """The oracle's logits ``[tokens, vocab]`` for ids with placeholders, computed without a cache."""
        row = torch.tensor([ids])
        kinds = {"token_type_ids" if self.name == "gemma3" else "mm_token_type_ids": (row == IMAGE).long()}
        if self.name == "12B":
            kinds["attention_mask"] = self._masks_of_generate(row)
        pixels = self.pixels(images) if images else {}
        with torch.no_grad():
            return self.oracle(input_ids=row, use_cache=False, **kinds, **pixels).logits[0].float()

    def video_logits(self, ids: list[int], frames: list[Image]) -> Tensor:
        """The same where the pictures are the frames of one video: their placeholders are the video's."""
        row = torch.tensor([ids])
        row = torch.where(row == IMAGE, VOCAB + 2, row)
        pixels = self.pixels(frames)
        given = {
            "pixel_values_videos": pixels["pixel_values"],
            "video_position_ids": pixels["image_position_ids"],
            "num_frames_per_video": torch.tensor([len(frames)]),
            "mm_token_type_ids": 2 * (row == VOCAB + 2).long(),
        }
        if self.name == "12B":
            given["attention_mask"] = self._masks_of_generate(torch.tensor([ids]))
        with torch.no_grad():
            return self.oracle(input_ids=row, use_cache=False, **given).logits[0].float()

    def _masks_of_generate(self, row: Tensor) -> dict[str, Tensor]:
        """The 12B's bare ``forward`` lets images see themselves both ways in full layers too (5.24); its ``generate``,
        like both of the larger Gemma 4, in sliding layers only, as the model was trained. That is what answers."""
        return self.oracle.create_masks_for_generate(
            self.oracle.config,
            torch.zeros(*row.shape, NARROW.hidden),
            attention_mask=None,
            cache=None,
            position_ids=None,
            mm_token_type_ids=(row == IMAGE).long(),
        )

    def pixels(self, images: list[Image]) -> dict[str, Tensor]:
        """As transformers' processors hand them over: squares, or patches padded to one length."""
        if self.name == "gemma3":
            return {"pixel_values": torch.stack([_square(image) for image in images])}
        longest = max(len(image.values) for image in images) + 9  # padding even for one
        values = [nn.functional.pad(image.values, (0, 0, 0, longest - len(image.values))) for image in images]
        places = [
            nn.functional.pad(image.positions, (0, 0, 0, longest - len(image.values)), value=-1) for image in images
        ]
        return {"pixel_values": torch.stack(values), "image_position_ids": torch.stack(places)}


def _square(image: Image) -> Tensor:
    """Patches back to a normalised picture ``[3, side, side]``."""
    side = round(len(image.values) ** 0.5)
    tiles = image.values.view(side, side, 4, 4, 3).permute(4, 0, 2, 1, 3)
    return (tiles.reshape(3, side * 4, side * 4) - 0.5) / 0.5


def make_seeing_twin(name: str, folder: Path) -> SeeingTwin:
    """Build, randomise and save the twin of a layout."""
    torch.manual_seed(sum(map(ord, name)))
    oracle = SEEING[name]().eval()
    oracle.set_attn_implementation("eager")
    with torch.no_grad():
        for key, tensor in [*oracle.named_parameters(), *oracle.named_buffers()]:
            randomise(key, tensor)
            _randomise_tower(key, tensor)
    oracle.save_pretrained(folder)
    return SeeingTwin(name, oracle, folder)


def _randomise_tower(key: str, tensor: Tensor) -> None:
    """Bounds within the numbers they meet, statistics and places that are no ones or zeros."""
    leaf = key.split(".")[-1]
    if leaf.endswith("_min"):
        tensor.copy_(-torch.rand(()) - 0.5)
    elif leaf.endswith("_max"):
        tensor.copy_(torch.rand(()) + 0.5)
    elif leaf in ("bias", "std_bias", "position_embedding_table", "pos_embedding"):
        tensor.normal_(std=0.5)
    elif leaf == "std_scale":
        tensor.copy_(torch.rand_like(tensor) + 0.5)
    elif leaf == "mm_input_projection_weight":
        tensor.normal_(std=tensor.shape[0] ** -0.5)
    elif "q_norm" in key:
        tensor.mul_(0.3)  # attention to one row alone amplifies rounding, not mistakes
