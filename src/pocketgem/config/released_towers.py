"""The vision and audio towers of the released layouts, as their ``vision_config`` and ``audio_config`` say them."""

from __future__ import annotations

JsonObject = dict[str, object]

# Gemma 3, 4B and up: SigLIP over 896 x 896 pixels.
SIGLIP: JsonObject = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 896,
    "vision_use_head": False,
}

# Gemma 3n: a MobileNet whose shapes only the library timm knows, and the Universal Speech Model.
MOBILENET: JsonObject = {
    "model_type": "gemma3n_vision",
    "architecture": "mobilenetv5_300m_enc",
    "hidden_size": 2048,
    "vocab_size": 128,
    "vocab_offset": 262_144,
    "rms_norm_eps": 1e-6,
}
USM: JsonObject = {
    "model_type": "gemma3n_audio",
    "hidden_size": 1536,
    "input_feat_size": 128,
    "vocab_size": 128,
    "vocab_offset": 262_272,
    "rms_norm_eps": 1e-6,
    "conf_num_hidden_layers": 12,
    "conf_num_attention_heads": 8,
    "conf_conv_kernel_size": 5,
    "sscp_conv_channel_size": [128, 32],
}

# Gemma 4: the small tower clips its linears, the big one standardises its output; only E-models have the conformer.
_VISION: JsonObject = {
    "model_type": "gemma4_vision",
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 10_240,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
}
VISION_SMALL: JsonObject = _VISION | {
    "hidden_size": 768,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "intermediate_size": 3072,
    "use_clipped_linears": True,
    "standardize": False,
}
VISION_BIG: JsonObject = _VISION | {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "intermediate_size": 4304,
    "use_clipped_linears": False,
    "standardize": True,
}
CONFORMER: JsonObject = {
    "model_type": "gemma4_audio",
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": [128, 32],
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_logit_cap": 50.0,
    "residual_weight": 0.5,
    "use_clipped_linears": True,
    "gradient_clipping": 1e10,
    "output_proj_dims": 1536,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}

# The 12B: no encoders. 48 x 48 pixels, or 40 ms of sound, enter through one projection each.
UNIFIED_VISION: JsonObject = {
    "model_type": "gemma4_unified_vision",
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "mm_embed_dim": 3840,
    "mm_posemb_size": 1120,
    "output_proj_dims": 3840,
    "num_soft_tokens": 280,
}
UNIFIED_AUDIO: JsonObject = {
    "model_type": "gemma4_unified_audio",
    "audio_embed_dim": 640,
    "audio_samples_per_token": 640,
}
