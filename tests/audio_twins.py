"""Twins that hear: tiny random models of the E2B and 12B layouts with their way of taking sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from pocketgem.media.kinds import Floats, Frames, Sound
from pocketgem.media.mel import mel, waves
from tests.twins import FULL, NARROW, SLIDING, VOCAB, Twin, e2b, randomise
from tests.vision_twins import ENCODER, Image, SeeingTwin

AUDIO, IMAGE, VIDEO = VOCAB - 1, VOCAB - 2, VOCAB - 3  # placeholders
CONFORMER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "output_proj_dims": 40,
    "subsampling_conv_channels": [128, 4],
}  # fmt: skip
PLACEHOLDERS = {"audio_token_id": AUDIO, "image_token_id": IMAGE, "video_token_id": VIDEO}


def hearing_e2b() -> nn.Module:
    text = e2b(NARROW).config.text_config
    config = transformers.Gemma4Config(text_config=text, vision_config=ENCODER, audio_config=CONFORMER, **PLACEHOLDERS)
    return transformers.Gemma4ForConditionalGeneration(config)


def hearing_12b() -> nn.Module:
    text = {
        **NARROW.gemma4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "attention_k_eq_v": True,
        "use_bidirectional_attention": "vision",
    }
    config = transformers.Gemma4UnifiedConfig(
        text_config=text, vision_config=None, audio_config={"audio_embed_dim": 640}, **PLACEHOLDERS
    )
    return transformers.Gemma4UnifiedForConditionalGeneration(config)


HEARING: dict[str, Callable[[], nn.Module]] = {"E2B": hearing_e2b, "12B": hearing_12b}
PREPARE: dict[str, Callable[[Sound], Frames]] = {"E2B": mel, "12B": waves}


def hearing_twin(name: str, folder: Path) -> Twin:
    """Build, randomise and save a twin. Clips are narrow enough to cut, and every scale is another."""
    torch.manual_seed(sum(map(ord, name)))
    oracle = HEARING[name]().eval()
    oracle.set_attn_implementation("eager")
    with torch.no_grad():
        for key, tensor in [*oracle.named_parameters(), *oracle.named_buffers()]:
            randomise(key, tensor)
            _randomise_tower(key.split(".")[-1], tensor)
    oracle.save_pretrained(folder)
    return Twin(name, oracle, folder)


def _randomise_tower(leaf: str, tensor: Tensor) -> None:
    if leaf == "per_dim_scale" or (leaf == "bias" and tensor.ndim == 1):
        tensor.normal_()
    elif leaf.endswith(("put_min", "put_max")):
        bound = 1.5 + torch.rand(()).item()
        tensor.fill_(-bound if leaf.endswith("min") else bound)


def sound(count: int, seed: int = 0) -> Sound:
    """Noise that swells and fades, so that frames differ."""
    made = np.random.default_rng(seed + count).standard_normal(count) * np.sin(np.arange(count) / 2000)
    return Sound((made * 0.3).astype(np.float32))


@torch.no_grad()
def oracle_rows(twin: Twin, values: Sequence[Floats]) -> list[Tensor]:
    """Rows that the reference makes of sounds, in one batch and so padded to the longest."""
    features, mask = padded(values)
    made = twin.oracle.model.get_audio_features(features, mask, return_dict=True)
    return [rows[valid] for rows, valid in zip(made.pooler_output, made.attention_mask, strict=True)]


def padded(values: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """Frames of several sounds ``[n, longest, width]``, zeros behind, and which of them are real."""
    longest = max(map(len, values))
    features = torch.zeros(len(values), longest, values[0].shape[1])
    mask = torch.zeros(len(values), longest, dtype=torch.bool)
    for index, one in enumerate(values):
        features[index, : len(one)] = torch.from_numpy(np.ascontiguousarray(one))
        mask[index, : len(one)] = True
    return features, mask


@torch.no_grad()
def oracle_merged(twin: Twin, ids: Sequence[int], values: Sequence[Floats], images: Sequence[Image] = ()) -> Tensor:
    """The reference's logits ``[tokens, vocab]`` of a prompt with sounds, and pictures, in their places."""
    features, mask = padded(values)
    row = torch.tensor([list(ids)])
    pixels = SeeingTwin(twin.name, twin.oracle, twin.folder).pixels(list(images)) if images else {}
    made = twin.oracle(
        input_ids=row,
        input_features=features,
        input_features_mask=mask,
        mm_token_type_ids=(row == IMAGE).long(),
        use_cache=False,
        **pixels,
    )
    return made.logits[0].float()
