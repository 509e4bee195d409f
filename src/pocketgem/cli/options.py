"""The options of ``run``, declared once, and what they become: sampling options by the engine's names."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketgem.memory.place import Place
from pocketgem.sizes import parse_size

if TYPE_CHECKING:
    import torch


class Dtype(StrEnum):
    """What weights become in memory."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    STORED = "stored"  # the file's blocks, unpacked piece by piece in use


class Device(StrEnum):
    """Where layers run."""

    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A .gguf file, a model folder, OWNER/NAME on the hub, or gemma-3-270m."),
]
Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="Left out or '-', it is read from stdin; at a terminal you converse."),
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system turn before the prompt.")]
Think = Annotated[bool, typer.Option("--think/--no-think", help="Let the model think before it answers.")]
ThinkingBudget = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Tokens of thought at most; then the model answers.")
]
Schema = Annotated[
    Path | None, typer.Option("--json-schema", metavar="FILE", help="The answer is JSON that this schema describes.")
]
Regex = Annotated[str | None, typer.Option("--regex", metavar="EXPRESSION", help="The answer matches this, whole.")]
Tools = Annotated[
    Path | None,
    typer.Option("--tools", metavar="FILE", help="A JSON list of tools, as in OpenAI's API, that the answer may call."),
]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as plain text, even with a chat template.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens to make at most. Default: 256 for plain text, else until the answer ends."),
]
Temperature = Annotated[float | None, typer.Option(help="0 always takes the most probable token.")]
TopK = Annotated[int | None, typer.Option(help="Choose among the K most probable tokens.")]
TopP = Annotated[float | None, typer.Option(help="Choose among the fewest tokens that hold this share.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens below this share of the best one's.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 weakens all tokens seen so far.")]
PresencePenalty = Annotated[float | None, typer.Option(help="-2 to 2, against tokens already made.")]
FrequencyPenalty = Annotated[float | None, typer.Option(help="-2 to 2, for each time a token was made.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same tokens.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text. May be given again.")]
Logprobs = Annotated[int | None, typer.Option(help="With --json: log-probabilities, also of the N best (0 to 20).")]
Context = Annotated[int | None, typer.Option(min=2, help="Tokens of prompt and answer together, at most.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="Processor threads; info --cpu tells the default.")]
DtypeChoice = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Weights in memory; auto: packed, or what is fastest and fits; stored: the file's blocks as they are.",
    ),
]
KeepPacked = Annotated[
    bool,
    typer.Option("--keep-packed/--no-keep-packed", help="Keep a large model's packed weights for the next start."),
]
Ple = Annotated[Place, typer.Option("--ple", help="Where per-layer embeddings are: device, ram, or read from disk.")]
ExpertMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory for routed experts, such as 4GiB; the others are read from the disk."),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter", metavar="ADAPTER", help="A folder, or the name of one registered or shipped; proved to act."
    ),
]
AllowDrift = Annotated[
    bool, typer.Option("--allow-drift", help="Put an adapter on a base that changed since it was made.")
]
DeviceChoice = Annotated[Device, typer.Option("--device", help="Where the layers run.")]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory to stay within, such as 2GiB: places and context are chosen for it."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the network.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Nothing but the answer and errors.")]


def given(**options: Any) -> dict[str, Any]:
    """The sampling options that were given. Raises PromptError for a value out of range, before anything is loaded."""
    from pocketgem.engine.request import SamplingParams

    wanted = {name: value for name, value in options.items() if value is not None}
    if "stop" in wanted:
        wanted["stop"] = tuple(wanted["stop"])
    SamplingParams(**wanted)
    return wanted


def size(text: str | None) -> int | None:
    """Bytes; None for an option that was not given. Raises InputError."""
    return None if text is None else parse_size(text)


def torch_dtype(choice: Dtype) -> torch.dtype | str | None:
    """As ``LLM.load`` takes it: None for auto."""
    import torch

    from pocketgem.memory.options import STORED

    named = {Dtype.AUTO: None, Dtype.BFLOAT16: torch.bfloat16, Dtype.FLOAT32: torch.float32, Dtype.STORED: STORED}
    return named[choice]
