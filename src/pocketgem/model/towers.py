"""What a checkpoint sees and hears with: towers that are built when they are first needed and can be dropped again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from threading import Lock

import torch
from torch import Tensor, nn

from pocketgem.checkpoint.load import Checkpoint
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.towers import AUDIO, VISION
from pocketgem.config import ModelConfig
from pocketgem.errors import UnsupportedError
from pocketgem.model.audio import build_audio
from pocketgem.model.vision import build_vision

Tensors = Mapping[str, StoredTensor]
_PREFIX = re.compile(r"^model\.")


class Towers:
    """The towers of one checkpoint. Calls from several threads take turns.

    others: tensors beside the text model's, under Hugging Face's names.
    """

    def __init__(self, config: ModelConfig, others: Tensors, where: str) -> None:
        named = {_PREFIX.sub("", name): tensor for name, tensor in others.items()}
        self.config, self.where = config, where
        self._tensors = {
            "vision": {name: tensor for name, tensor in named.items() if name.startswith(VISION)},
            "audio": {name: tensor for name, tensor in named.items() if name.startswith(AUDIO)},
        }
        self._built: dict[str, nn.Module] = {}
        self._lock = Lock()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Towers:
        return cls(checkpoint.config, checkpoint.others, checkpoint.where)

    @property
    def sees(self) -> bool:
        """Whether there is a vision tower: its tensors, and the config that says their shapes."""
        return bool(self._tensors["vision"]) and self.config.vision is not None

    @property
    def hears(self) -> bool:
        """Whether there is an audio tower."""
        return bool(self._tensors["audio"]) and self.config.audio is not None

    @property
    def nbytes(self) -> int:
        """Bytes that built towers hold now."""
        return sum(p.nbytes for tower in self._built.values() for p in tower.state_dict().values())

    def see(self, values: Tensor, positions: Tensor) -> Tensor:
        """Rows for one picture: see the module that ``build_vision`` makes. Raises UnsupportedError without a tower."""
        return self._run("vision", self.sees, build_vision, values, positions)

    def hear(self, values: Tensor) -> Tensor:
        """Rows for one sound: see the module that ``build_audio`` makes. Raises UnsupportedError without a tower."""
        return self._run("audio", self.hears, build_audio, values)

    def drop(self) -> None:
        """Give the memory of all towers back; the next call builds what it needs anew."""
        with self._lock:
            self._built.clear()

    def identity(self, kind: str) -> bytes:
        """32 bytes that are others where a tower's file is another: part of the name of what it made."""
        files = sorted({(t.source.path.name, t.source.size, t.start) for t in self._tensors[kind].values()})
        return hashlib.sha256(repr((kind, self.where, files)).encode()).digest()

    @torch.inference_mode()
    def _run(
        self, kind: str, present: bool, build: Callable[[ModelConfig, Tensors, str], nn.Module], *inputs: Tensor
    ) -> Tensor:
        if not present:
            raise UnsupportedError(f"{self.where}: this checkpoint has no {kind} tower")
        with self._lock:
            if kind not in self._built:
                self._built[kind] = build(self.config, self._tensors[kind], self.where)
            rows: Tensor = self._built[kind](*inputs)
        return rows
