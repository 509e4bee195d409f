"""One tensor, three names: ours (module paths), Hugging Face's (after the text prefix) and GGUF's.

Ours follow Hugging Face's, save that parts of a layer which form a unit live in a module of their own.
Source of the GGUF names: the ``gguf`` package's tensor table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pocketgem.errors import WeightsError

TABLE = "embed_tokens_per_layer.weight"  # the per-layer-embedding table: a row source, never a parameter
OWN_UNITS = ("per_layer.", "gate.", "routed.")  # modules of ours that Hugging Face's names do not have

_TOP = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "altup.correction_coefs.weight": "altup_correct_coef.weight",
    "altup.correct_output_scale": "altup_correct_scale.weight",
    "altup.prediction_coefs.weight": "altup_predict_coef.weight",
    "altup.modality_router.weight": "altup_router.weight",
    "altup.router_norm.weight": "altup_router_norm.weight",
    "laurel.linear_left.weight": "laurel_l.weight",
    "laurel.linear_right.weight": "laurel_r.weight",
    "laurel.post_laurel_norm.weight": "laurel_post_norm.weight",
}
STACKS = {"altup_projections": "altup_proj.weight", "altup_unembed_projections": "altup_unembd_proj.weight"}

_TOP_BACK, _LAYER_BACK, _STACKS_BACK = ({ours: hf for hf, ours in table.items()} for table in (_TOP, _LAYER, STACKS))
_LAYER_NAME = re.compile(r"layers\.(\d+)\.(.+)")
_STACK_NAME = re.compile(r"(altup_projections|altup_unembed_projections)\.(\d+)\.weight")


def hf_name(ours: str) -> str:
    """Our module path -> Hugging Face's name without the text prefix."""
    parts = ours.split(".")
    return ".".join(part for part in parts if f"{part}." not in OWN_UNITS)


def gguf_name(hf: str) -> str:
    """Hugging Face's name without prefix -> GGUF's. Members of a stack get the stack's name."""
    if match := _LAYER_NAME.fullmatch(hf):
        return f"blk.{match[1]}.{_LAYER[match[2]]}"
    if match := _STACK_NAME.fullmatch(hf):
        return STACKS[match[1]]
    return _TOP[hf]


def stack_index(hf: str) -> int | None:
    """Place of a tensor within a GGUF stack, None when it has a tensor of its own."""
    match = _STACK_NAME.fullmatch(hf)
    return int(match[2]) if match else None


def hf_names(gguf: str, members: int) -> list[str]:
    """GGUF's name -> Hugging Face's names: one, or one for each of a stack's ``members``; none for a foreign tensor."""
    if match := re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(.+)", gguf):
        inner = _LAYER_BACK.get(match[2])
        return [f"layers.{match[1]}.{inner}"] if inner else []
    if gguf in _STACKS_BACK:
        return [f"{_STACKS_BACK[gguf]}.{index}.weight" for index in range(members)]
    return [_TOP_BACK[gguf]] if gguf in _TOP_BACK else []


def text_prefix(names: Iterable[str]) -> str:
    """What stands before ``embed_tokens.weight`` in a safetensors checkpoint: '', 'model.', 'model.language_model.' ...

    Raises WeightsError when there is none, or several.
    """
    tail = "embed_tokens.weight"
    found = sorted({name[: -len(tail)] for name in names if name == tail or name.endswith(f".{tail}")})
    if len(found) != 1:
        seen = "no tensor" if not found else f"{len(found)} tensors ({', '.join(found[:3])}...)"
        raise WeightsError(f"the checkpoint has {seen} named ...{tail}: not one text model")
    return found[0]
