"""How the models of a server are loaded: by this process, or by a replica in another."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketgem.checkpoint.load import Checkpoint
    from pocketgem.llm import LLM
    from pocketgem.serve.models import Source


@dataclass(frozen=True)
class Loader:
    """``options`` are those of ``LLM.load``, with ``dtype`` by its name. It can be sent to another process."""

    options: dict[str, Any]
    mmprojs: dict[str, Path]  # files with the towers of some models, by the models' names
    cache_dir: Path | None  # each model's pasts in a folder of its own in there
    adapters: dict[str, dict[str, Path]] = field(default_factory=dict)  # of each model: folders by name

    def opened(self, name: str, model: str) -> Checkpoint:
        """The checkpoint with its headers read. Raises all that can be said without torch."""
        from pocketgem.checkpoint.load import open_checkpoint
        from pocketgem.checkpoint.resolve import resolve
        from pocketgem.engine.request import checked_context
        from pocketgem.memory.place import checked_place

        checkpoint = open_checkpoint(resolve(model, offline=self.options["offline"]))
        checked_context(self.options["context"], checkpoint.config)
        checked_place(self.options["ple"], checkpoint.config)
        if name in self.mmprojs:
            from pocketgem.checkpoint.mmproj import with_mmproj

            return with_mmproj(checkpoint, self.mmprojs[name])
        return checkpoint

    def weight(self, name: str, model: str) -> int:
        """Bytes the model will take by its plan, at most the whole budget."""
        checkpoint = self.opened(name, model)
        if self.options["memory"] is None:
            return 0
        from pocketgem.checkpoint.load import towers_in
        from pocketgem.memory.fit import Wish
        from pocketgem.memory.options import Options, plan_here
        from pocketgem.memory.program import base_here

        media = towers_in(checkpoint)  # whoever asks may send any kind that the model takes
        options = Options(sequences=self.options["sequences"], threads=self.options["threads"], media=media)
        wish = Wish(self.options["memory"], None, self.options["context"], self.options["ple"], None)
        return max(0, plan_here(checkpoint, wish, options).peak - base_here().total)

    def source(self, name: str, model: str, weight: int) -> Source:
        from pocketgem.serve.models import Source

        return Source(name, lambda: self(name, model), weight, self.adapters.get(name, {}))

    def __call__(self, name: str, model: str, progress: Callable[[int, int], None] | None = None) -> LLM:
        import torch  # here: all that can be wrong without it has been said

        from pocketgem.checkpoint.load import towers_in
        from pocketgem.checkpoint.towers import TOWER_OF
        from pocketgem.llm import LLM
        from pocketgem.memory.options import STORED

        dtype = self.options["dtype"]
        options = {**self.options, "dtype": dtype if dtype in (None, STORED) else getattr(torch, str(dtype))}
        checkpoint = self.opened(name, model)
        options["media"] = [kind for kind, tower in TOWER_OF.items() if tower in towers_in(checkpoint)]
        if self.cache_dir is not None:
            self.cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            options["cache_dir"] = self.cache_dir / re.sub(r"[^\w.-]", "_", name)
        return LLM.load(checkpoint, progress=progress, **options)
