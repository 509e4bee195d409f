"""G4, G5, G10, G13: a file that opens must survive its first tokens too, or be refused by name."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgem import LLM, SamplingParams
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.load import open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.types import StoredType
from pocketgem.checkpoint.write import write_gguf
from pocketgem.errors import PocketgemError
from tests.text_fixtures import gemma4_metadata, spm_metadata
from tests.twins import make_twin

ABSURD: list[object] = [
    0,
    1,
    2,
    3,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    -1,
    0.0,
    -1.5,
    1e38,
    "text",
    "",
    True,
    [],
    [0],
    [1, 2],
]
LAYOUTS = {"gemma3": spm_metadata, "gemma3n": spm_metadata, "E2B": gemma4_metadata, "26B-A4B": gemma4_metadata}
EVERY_VALUE = {"gemma3n"}  # the layout with the most keys
ANSWERS = ("ran", "FormatError", "UnsupportedError", "WeightsError", "TokenizerError", "CheckpointError", "PromptError")
SOME_TOKENS = SamplingParams(max_tokens=3)


@pytest.fixture(scope="module", params=list(LAYOUTS))
def seed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed")
    source = open_checkpoint(resolve(make_twin(request.param, folder / "twin").folder))
    path = folder / f"{request.param}.gguf"
    export_gguf(source, path, StoredType.F32, vocabulary=LAYOUTS[request.param]())
    return path


def use(path: Path) -> str:
    """Load and write a few tokens; returns what happened, lets nothing but our own errors pass as an answer."""
    try:
        LLM.load(path, dtype=torch.float32).generate([5, 6, 7, 8, 9, 10, 11, 12, 13, 14], params=SOME_TOKENS)
    except PocketgemError as error:
        return type(error).__name__ if "\n" not in str(error) and len(str(error)) < 600 else f"unreadable: {error}"
    return "ran"


def rewritten(seed: Path, path: Path, **changes: object) -> Path:
    """The seed with metadata keys changed (None: removed)."""
    file = GGUFFile.open(seed)
    metadata = {key: value for key, value in file.metadata.items() if key != "general.architecture"} | changes
    kept = {key: value for key, value in metadata.items() if value is not None and value != []}
    write_gguf(
        path, file.architecture, kept, ((name, one.dense(), StoredType.F32) for name, one in file.tensors.items())
    )
    return path


def shape_keys(seed: Path) -> Iterator[str]:
    return (key for key in GGUFFile.open(seed).metadata if not key.startswith(("general.", "tokenizer.ggml.tokens")))


def test_every_key_with_every_absurd_value(seed: Path, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = set()
    step = 1 if seed.stem in EVERY_VALUE else 3  # elsewhere a third of the values, another third for the next key
    for number, key in enumerate(shape_keys(seed)):
        for value in [None, *ABSURD[number % step :: step]]:
            outcomes.add(use(rewritten(seed, tmp_path / "changed.gguf", **{key: value})))
    assert {"ran", "FormatError", "WeightsError"} <= outcomes <= {*ANSWERS}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 500, f"peak memory grew by {grown:.0f} MiB over files of half a MiB"


@settings(max_examples=150)
@given(data=st.data())
def test_flipped_header_bits(seed: Path, data: st.DataObject) -> None:
    content = bytearray(seed.read_bytes())
    first = min(tensor.data.storage_offset() for tensor in GGUFFile.open(seed).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, first - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = seed.parent / "flipped.gguf"
    path.write_bytes(content)
    assert not use(path).startswith("unreadable")


@pytest.mark.parametrize("damage", ["missing", "narrow", "extra"])
def test_tensors_that_do_not_fit(seed: Path, tmp_path: Path, damage: str) -> None:
    file = GGUFFile.open(seed)
    metadata = {key: value for key, value in file.metadata.items() if key != "general.architecture"}
    for name in [*list(file.tensors)[:6], *list(file.tensors)[-6:]]:
        tensors = {other: one.dense() for other, one in file.tensors.items()}
        if damage == "missing":
            del tensors[name]
        elif damage == "narrow":
            tensors[name] = tensors[name][..., : tensors[name].shape[-1] // 2].contiguous()
        else:
            tensors["blk.7.attn_q.weight"] = tensors.pop(name)
        if not all(one.numel() for one in tensors.values()):
            continue
        write_gguf(
            tmp_path / "bad.gguf", file.architecture, metadata, ((n, t, StoredType.F32) for n, t in tensors.items())
        )
        assert use(tmp_path / "bad.gguf") in ("WeightsError", "FormatError", "UnsupportedError"), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e38])
def test_weights_that_are_no_numbers_fail_by_name(seed: Path, tmp_path: Path, value: float) -> None:
    """G5: loads cleanly, breaks at the first token. NaN is found, never sampled from."""
    file = GGUFFile.open(seed)
    metadata = {key: v for key, v in file.metadata.items() if key != "general.architecture"}
    tensors = {name: one.dense().clone() for name, one in file.tensors.items()}
    tensors["output_norm.weight"].fill_(value)
    write_gguf(tmp_path / "nan.gguf", file.architecture, metadata, ((n, t, StoredType.F32) for n, t in tensors.items()))
    outcome = use(tmp_path / "nan.gguf")
    assert outcome == ("RunError" if value != value else outcome)
    assert outcome in ("ran", "RunError")
