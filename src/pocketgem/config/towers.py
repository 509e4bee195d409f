"""Shapes of the vision and audio towers, read from their raw configs. Names are the Hugging Face checkpoint's, from
``vision_tower.``, ``audio_tower.``, ``embed_vision.`` and the like on; defaults are transformers' config classes'."""

from __future__ import annotations

from pocketgem.config.fields import MAX_LAYERS, Fields
from pocketgem.config.model import ModelConfig

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def vision_shapes(config: ModelConfig) -> Shapes:
    """Tensors that turn pixels into soft tokens, projector and buffers included. Raises FormatError.

    Gemma 3n's MobileNet is left out: its shapes stand in the library timm, not in the config.
    """
    if config.vision is None:
        return {}
    fields, hidden = Fields(config.vision, "vision_config"), config.hidden_size
    if config.family == "gemma3":
        return _siglip(fields, hidden)
    if config.family == "gemma3n":
        return prefixed("embed_vision.", _gemma3n_embedder(fields, 2048, hidden))
    return _unified_vision(fields, hidden) if config.unified else _gemma4_vision(fields, hidden)


def audio_shapes(config: ModelConfig) -> Shapes:
    """Tensors that turn sound into soft tokens, projector and buffers included. Raises FormatError."""
    if config.audio is None or config.family == "gemma3":
        return {}
    fields, hidden = Fields(config.audio, "audio_config"), config.hidden_size
    if config.family == "gemma3n":
        return _usm(fields) | prefixed("embed_audio.", _gemma3n_embedder(fields, 1536, hidden))
    if config.unified:
        return {"embed_audio.embedding_projection.weight": (hidden, fields.int("audio_embed_dim", 640))}
    return _conformer(fields, hidden)


def uncounted_towers(config: ModelConfig) -> tuple[str, ...]:
    """Towers present in the model that ``vision_shapes`` and ``audio_shapes`` cannot know."""
    if config.family != "gemma3n" or config.vision is None:
        return ()
    return (f"vision tower {Fields(config.vision, 'vision_config').str('architecture', 'mobilenetv5_300m_enc')}",)


# --- Gemma 3: SigLIP --------------------------------------------------------------------------------------------------


def _siglip(fields: Fields, text_hidden: int) -> Shapes:
    hidden, patch = fields.int("hidden_size", 768), fields.int("patch_size", 16)
    positions = (fields.int("image_size", 224) // patch) ** 2
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (hidden, fields.int("num_channels", 3), patch, patch),
        "embeddings.patch_embedding.bias": (hidden,),
        "embeddings.position_embedding.weight": (positions, hidden),
        **_affine("post_layernorm", hidden),
    }
    layer = _siglip_layer(hidden, fields.int("intermediate_size", 3072))
    shapes |= _repeated("encoder.layers", fields.int("num_hidden_layers", 12, high=MAX_LAYERS), layer)
    return prefixed("vision_tower.", shapes) | {
        "multi_modal_projector.mm_input_projection_weight": (hidden, text_hidden),  # used as x @ w: input first
        "multi_modal_projector.mm_soft_emb_norm.weight": (hidden,),
    }


def _siglip_layer(hidden: int, width: int) -> Shapes:
    shapes = _affine("layer_norm1", hidden) | _affine("layer_norm2", hidden)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _affine(f"self_attn.{name}", hidden, hidden)
    return shapes | _affine("mlp.fc1", width, hidden) | _affine("mlp.fc2", hidden, width)


# --- Gemma 3n: Universal Speech Model ---------------------------------------------------------------------------------


def _usm(fields: Fields) -> Shapes:
    hidden, heads = fields.int("hidden_size", 1536), fields.int("conf_num_attention_heads", 8)
    channels = fields.ints("sscp_conv_channel_size", 2, (128, 32))
    bands = -(-fields.int("input_feat_size", 128) // 4)  # two convolutions of stride 2
    subsample: Shapes = {
        "conv_0.conv.weight": (channels[0], 1, 3, 3),
        "conv_0.norm.weight": (channels[0],),
        "conv_1.conv.weight": (channels[1], channels[0], 3, 3),
        "conv_1.norm.weight": (channels[1],),
        "input_proj_linear.weight": (hidden, channels[1] * bands),
    }
    layer = _usm_layer(hidden, hidden // heads, fields.int("conf_conv_kernel_size", 5))
    layers = _repeated("conformer", fields.int("conf_num_hidden_layers", 12, high=MAX_LAYERS), layer)
    return prefixed("audio_tower.", prefixed("subsample_conv_projection.", subsample) | layers)


def _usm_layer(hidden: int, head_dim: int, kernel: int) -> Shapes:
    shapes: Shapes = {
        "attention.attn.per_dim_scale": (head_dim,),
        "attention.attn.relative_position_embedding.pos_proj.weight": (hidden, hidden),
        "attention.post.weight": (hidden, hidden),
        "lconv1d.linear_start.weight": (2 * hidden, hidden),
        "lconv1d.depthwise_conv1d.weight": (hidden, 1, kernel),
        "lconv1d.linear_end.weight": (hidden, hidden),
    }
    shapes |= {f"attention.attn.{name}_proj.weight": (hidden, hidden) for name in "qkv"}
    for name in ("ffw_layer_start", "ffw_layer_end"):
        shapes |= {f"{name}.ffw_layer_1.weight": (4 * hidden, hidden)}
        shapes |= {f"{name}.ffw_layer_2.weight": (hidden, 4 * hidden)}
        shapes |= _norms(hidden, f"{name}.pre_layer_norm", f"{name}.post_layer_norm")
    norms = ("attention.pre_attn_norm", "attention.post_norm", "lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm")
    return shapes | _norms(hidden, *norms)


def _gemma3n_embedder(fields: Fields, default_hidden: int, text_hidden: int) -> Shapes:
    """A small vocabulary of its own (hard tokens) beside the projection of soft ones."""
    hidden = fields.int("hidden_size", default_hidden)
    return {
        "embedding.weight": (fields.int("vocab_size", 128), hidden),
        "embedding_projection.weight": (text_hidden, hidden),
        **_norms(hidden, "hard_embedding_norm", "soft_embedding_norm"),
    }


# --- Gemma 4 ----------------------------------------------------------------------------------------------------------


def _gemma4_vision(fields: Fields, text_hidden: int) -> Shapes:
    hidden, patch = fields.int("hidden_size", 768), fields.int("patch_size", 16)
    shapes: Shapes = {
        "patch_embedder.input_proj.weight": (hidden, 3 * patch * patch),
        "patch_embedder.position_embedding_table": (2, fields.int("position_embedding_size", 10_240), hidden),
    }
    layers = fields.int("num_hidden_layers", 16, high=MAX_LAYERS)
    shapes |= _repeated("encoder.layers", layers, _gemma4_vision_layer(fields, hidden))
    if fields.bool("standardize", False):
        shapes |= {"std_bias": (hidden,), "std_scale": (hidden,)}
    return prefixed("vision_tower.", shapes) | {"embed_vision.embedding_projection.weight": (text_hidden, hidden)}


def _gemma4_vision_layer(fields: Fields, hidden: int) -> Shapes:
    head_dim, width = fields.int("head_dim", 64), fields.int("intermediate_size", 3072)
    queries = fields.int("num_attention_heads", 12) * head_dim
    keys = fields.int("num_key_value_heads", 12) * head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (width, hidden),
        "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
    }
    shapes = _clipped(linears, fields.bool("use_clipped_linears", False))
    shapes |= _norms(head_dim, "self_attn.q_norm", "self_attn.k_norm")
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    return shapes | _norms(hidden, *(f"{norm}_layernorm" for norm in norms))


def _conformer(fields: Fields, text_hidden: int) -> Shapes:
    hidden, out = fields.int("hidden_size", 1024), fields.int("output_proj_dims", 1536)
    channels = fields.ints("subsampling_conv_channels", 2, (128, 32))
    subsample: Shapes = {
        "layer0.conv.weight": (channels[0], 1, 3, 3),
        "layer0.norm.weight": (channels[0],),
        "layer1.conv.weight": (channels[1], channels[0], 3, 3),
        "layer1.norm.weight": (channels[1],),
        # 128 mel bands, a quarter left after two strides of 2; the reference writes this as channels[0] // 4
        "input_proj_linear.weight": (hidden, channels[0] // 4 * channels[1]),
    }
    layers = _repeated("layers", fields.int("num_hidden_layers", 12, high=MAX_LAYERS), _conformer_layer(fields, hidden))
    tower = prefixed("subsample_conv_projection.", subsample) | layers | _affine("output_proj", out, hidden)
    return prefixed("audio_tower.", tower) | {"embed_audio.embedding_projection.weight": (text_hidden, out)}


def _conformer_layer(fields: Fields, hidden: int) -> Shapes:
    linears = {f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "post")}
    linears |= {"lconv1d.linear_start": (2 * hidden, hidden), "lconv1d.linear_end": (hidden, hidden)}
    norms = ["lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm_pre_attn", "norm_post_attn", "norm_out"]
    for name in ("feed_forward1", "feed_forward2"):
        linears |= {f"{name}.ffw_layer_1": (4 * hidden, hidden), f"{name}.ffw_layer_2": (hidden, 4 * hidden)}
        norms += [f"{name}.pre_layer_norm", f"{name}.post_layer_norm"]
    shapes = _clipped(linears, fields.bool("use_clipped_linears", True)) | _norms(hidden, *norms)
    return shapes | {
        "self_attn.relative_k_proj.weight": (hidden, hidden),
        "self_attn.per_dim_scale": (hidden // fields.int("num_attention_heads", 8),),
        "lconv1d.depthwise_conv1d.weight": (hidden, 1, fields.int("conv_kernel_size", 5)),
    }


def _unified_vision(fields: Fields, text_hidden: int) -> Shapes:
    """The 12B: one dense layer over merged patches, positions looked up by column and row."""
    hidden = fields.int("mm_embed_dim", 3840)
    side = fields.int("patch_size", 16) * fields.int("pooling_kernel_size", 3)
    shapes: Shapes = {"pos_embedding": (fields.int("mm_posemb_size", 1120), 2, hidden)}
    shapes |= _affine("patch_ln1", 3 * side * side) | _affine("patch_dense", hidden, 3 * side * side)
    shapes |= _affine("patch_ln2", hidden) | _affine("pos_norm", hidden)
    projection = (text_hidden, fields.int("output_proj_dims", 3840))
    return prefixed("vision_embedder.", shapes) | {"embed_vision.embedding_projection.weight": projection}


# --- Pieces -----------------------------------------------------------------------------------------------------------


def _clipped(linears: dict[str, tuple[int, int]], clipped: bool) -> Shapes:
    """Gemma 4 wraps each linear; a clipped one carries four scalar bounds."""
    shapes: Shapes = {f"{name}.linear.weight": shape for name, shape in linears.items()}
    bounds = ("input_min", "input_max", "output_min", "output_max") if clipped else ()
    return shapes | {f"{name}.{bound}": () for name in linears for bound in bounds}


def _affine(name: str, *weight: int) -> Shapes:
    """A linear or a LayerNorm, with bias."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _norms(size: int, *names: str) -> Shapes:
    return {f"{name}.weight": (size,) for name in names}


def _repeated(prefix: str, count: int, layer: Shapes) -> Shapes:
    return {f"{prefix}.{i}.{name}": shape for i in range(count) for name, shape in layer.items()}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}
