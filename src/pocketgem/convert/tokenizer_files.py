"""A vocabulary as ``tokenizer.json`` and ``tokenizer_config.json``, from which other libraries make the same ids.

Gemma's pipeline: spaces become ▁, byte-pair merges with byte fallback, and tokens that are matched whole before. Whole
tokens with a ▁ are matched after spaces were replaced, others before; so runs of spaces come out as here.
"""

from __future__ import annotations

from collections.abc import Mapping

from pocketgem.checkpoint.load import Checkpoint
from pocketgem.text.vocab import SPACE, Vocabulary

Json = dict[str, object]


def tokenizer_json(vocabulary: Vocabulary) -> Json:
    """The content of ``tokenizer.json``. Raises TokenizerError for merges that cannot be made."""
    ids = {text: id for id, text in enumerate(vocabulary.spellings) if text}
    whole = {text: ids[text] for text in vocabulary.whole}
    added = [_added(text, id, special=True) for text, id in vocabulary.control.items()]
    added += [_added(text, id, special=False) for text, id in whole.items()]
    unknown = "<unk>" if "<unk>" in vocabulary.control else None
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda entry: int(str(entry["id"]))),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "post_processor": _begin(vocabulary) if vocabulary.adds_bos else None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": ids,
            "merges": [[left, right] for left, right in vocabulary.merges()],
        },
    }  # fmt: skip


def _added(text: str, id: int, *, special: bool) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special and SPACE in text}
    return {"id": id, "content": text, **flags, "special": special}


def _begin(vocabulary: Vocabulary) -> Json:
    """Every sequence starts with the begin token."""
    text = vocabulary.spellings[vocabulary.bos_id]
    first = {"SpecialToken": {"id": text, "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": at}} for at, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, {"SpecialToken": {"id": text, "type_id": 1}}, two],
        "special_tokens": {text: {"id": text, "ids": [vocabulary.bos_id], "tokens": [text]}},
    }


def tokenizer_config(vocabulary: Vocabulary, checkpoint: Checkpoint) -> Json:
    """The content of ``tokenizer_config.json``."""
    known = {name: text for name, text in _NAMED.items() if text in vocabulary.control}
    named = {"bos_token": vocabulary.spellings[vocabulary.bos_id]}
    if vocabulary.eos_id is not None:
        named["eos_token"] = vocabulary.spellings[vocabulary.eos_id]
    return {
        "tokenizer_class": "GemmaTokenizerFast",
        **known,
        **named,
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": checkpoint.config.max_position_embeddings,
        "padding_side": "left",
        **_template(checkpoint),
    }


def _template(checkpoint: Checkpoint) -> Mapping[str, object]:
    """Readers older than ``chat_template.jinja`` look for it here."""
    return {"chat_template": checkpoint.chat_template} if checkpoint.chat_template else {}


_NAMED = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
