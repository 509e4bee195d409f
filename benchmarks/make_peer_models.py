"""A Gemma 3 GGUF file written out as a Hugging Face folder, which the converters of other runtimes start from.

    python -m benchmarks.make_peer_models MODEL.gguf FOLDER

benchmarks/peers.md has the rest of the recipe. Needs transformers, gguf and accelerate, all in ``pocketgem[dev]``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a Gemma 3 GGUF file")
    parser.add_argument("folder", type=Path, help="where the Hugging Face folder goes")
    options = parser.parse_args()
    home, file = str(options.model.parent), options.model.name
    model = AutoModelForCausalLM.from_pretrained(home, gguf_file=file, dtype=torch.bfloat16)
    plain(model).save_pretrained(options.folder)
    AutoTokenizer.from_pretrained(home, gguf_file=file).save_pretrained(options.folder)
    spell_as_before(options.folder)


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The weights are bfloat16 by now; what still says "quantized with gguf" would forbid saving them."""
    model = model.to(torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def spell_as_before(folder: Path) -> None:
    """The converters want transformers 4, which knows neither nested rope settings nor the tokenizer class of 5."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["full_attention"]["rope_theta"]
    config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2))


if __name__ == "__main__":
    main()
