"""Who is measured: ourselves and the peers, how each worker is started, and what must be there for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pocketgem.checkpoint.load import Checkpoint
from pocketgem.config import decoder_shapes, from_hf
from pocketgem.config.released import released_config
from pocketgem.errors import CheckpointError, InputError, UnsupportedError

OURS = "pocketgem"
_AVX512 = "-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_BF16=ON"


@dataclass(frozen=True)
class Subject:
    """One runtime. ``options`` go to its worker beside the common ones; ``weight``: memory in multiples of the file."""

    name: str
    worker: str  # module that is run
    needs: tuple[str, ...] = ()  # modules its interpreter must have
    install: str = ""
    own_model: bool = False
    reads_file: bool = False  # the model's own bytes, as they stand: what GB/s are counted by
    weight: int = 1
    python: str = sys.executable
    options: Mapping[str, object] = field(default_factory=dict)


_PEER = "pocketgem.bench.peers"
PEERS = {
    peer.name: peer
    for peer in (
        Subject(
            "llama.cpp",
            f"{_PEER}.llama_cpp",
            ("llama_cpp",),
            f'pip install llama-cpp-python (where its AMX path fails: CMAKE_ARGS="{_AVX512}" before it)',
            reads_file=True,
        ),
        Subject(
            "transformers",
            f"{_PEER}.transformers",
            ("transformers", "accelerate", "torch"),
            "pip install transformers accelerate gguf",
            weight=4,
        ),
        Subject(
            "onnxruntime-genai",
            f"{_PEER}.onnxruntime_genai",
            ("onnxruntime_genai",),
            "pip install onnxruntime-genai",
            own_model=True,
        ),
        Subject(
            "openvino-genai",
            f"{_PEER}.openvino_genai",
            ("openvino_genai",),
            "pip install openvino-genai",
            own_model=True,
        ),
    )
}


def ours(
    *, keep_packed: bool = True, ple: str = "auto", device: str = "cpu", expert_memory: int | None = None
) -> Subject:
    options = {"keep_packed": keep_packed, "ple": ple, "device": device, "expert_memory": expert_memory}
    return Subject(OURS, "pocketgem.bench.worker", reads_file=True, options=options)


def chosen(names: list[str], pythons: Mapping[str, str], models: Mapping[str, str]) -> list[Subject]:
    """The peers by name, each with its interpreter and its model folder. Raises InputError where one is missing."""
    if unknown := sorted({*names, *pythons, *models} - PEERS.keys()):
        raise InputError(f"no peer is called {unknown[0]!r}; there are: {', '.join(PEERS)}")
    found = []
    for name in dict.fromkeys(names):
        peer = replace(PEERS[name], python=pythons.get(name, sys.executable))
        if peer.own_model:
            peer = replace(peer, options={"peer_model": _folder(peer, models)})
        _check_modules(peer)
        found.append(peer)
    return found


def _folder(peer: Subject, models: Mapping[str, str]) -> str:
    folder = models.get(peer.name)
    if folder is None or not Path(folder).is_dir():
        raise InputError(f"{peer.name} needs a model folder of its own: --peer-model {peer.name}=FOLDER")
    return str(Path(folder).resolve())


def _check_modules(peer: Subject) -> None:
    """Ask the interpreter, without importing anything, whether it has what the worker needs."""
    code = "import sys, importlib.util as u; sys.exit(any(u.find_spec(name) is None for name in sys.argv[1:]))"
    try:
        done = subprocess.run([peer.python, "-c", code, *peer.needs], capture_output=True, check=False)
    except OSError as error:
        raise InputError(f"--peer-python {peer.python}: cannot be run ({error.strerror})") from error
    if done.returncode:
        raise InputError(
            f"{peer.name} is not installed in {peer.python}; install it there with: {peer.install}; "
            f"or name an interpreter that has it: --peer-python {peer.name}=PYTHON"
        )


def with_weights(peer: Subject, checkpoint: Checkpoint) -> Subject:
    """For transformers, where it takes its weights from. Raises UnsupportedError for a file no peer can read."""
    if peer.name == "llama.cpp" and checkpoint.location.kind != "gguf":
        raise UnsupportedError(f"{checkpoint.where}: llama.cpp reads GGUF files only")
    if peer.name != "transformers":
        return peer
    if checkpoint.location.kind == "safetensors":
        return replace(peer, options={"source": "folder"})
    if (layout := synthetic_layout(checkpoint)) is not None:
        return replace(peer, options={"source": "config", "config": _text_config(layout, checkpoint)})
    if checkpoint.config.family == "gemma3":
        return replace(peer, options={"source": "gguf"})
    raise UnsupportedError(
        f"{checkpoint.where}: transformers reads no {checkpoint.config.family} from GGUF; --vs transformers takes "
        "Gemma 3 GGUF files, safetensors folders, and synthetic files of any layout (pocketgem synth)"
    )


def synthetic_layout(checkpoint: Checkpoint) -> str | None:
    """The released layout that a synthetic file says it has; None for a file that does not call itself synthetic."""
    words = str(checkpoint.metadata.get("general.name", "")).split()
    return words[1] if len(words) > 1 and words[0] == "synthetic" else None


def _text_config(layout: str, checkpoint: Checkpoint) -> dict[str, object]:
    """The layout's own config, text part only, once its shapes are the file's."""
    try:
        config = released_config(layout)
    except CheckpointError:
        raise UnsupportedError(f"{checkpoint.where}: transformers has no layout called {layout[:60]!r}") from None
    if decoder_shapes(from_hf(config, layout)) != decoder_shapes(checkpoint.config):
        raise UnsupportedError(f"{checkpoint.where}: its shapes are not those of {layout}, whose name it carries")
    text = config.get("text_config", config)
    return dict(text) if isinstance(text, dict) else {}
