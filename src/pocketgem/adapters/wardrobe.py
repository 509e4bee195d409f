"""The adapters of one model that requests can name: loaded when one does, proved to act, dropped when room is wanted.

    wardrobe.offer(name, folder)    can be asked for; its files are read when it is
    wardrobe.take(name)             a Lease: while it lives the adapter stays on the model
    wardrobe.add / drop / names

Adapters that nobody holds leave when the bytes of all would pass the budget, the one that was of use longest ago first.
Changing the model waits for the step that runs (``lock``); reading files does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakSet

from pocketgem.adapters.adapter import Adapter
from pocketgem.adapters.base import Base
from pocketgem.adapters.dialect import Dialect, read_dialect
from pocketgem.adapters.drift import checked
from pocketgem.adapters.effect import Effect, put_and_prove
from pocketgem.adapters.manifest import manifest_in
from pocketgem.adapters.peft import open_adapter
from pocketgem.adapters.probe import Probe
from pocketgem.errors import BusyError, FormatError, InputError, PromptError
from pocketgem.model.gemma import Gemma
from pocketgem.model.low_rank import packed
from pocketgem.model.mix import Mix, mix_of

USUAL_BUDGET = 1 << 30  # bytes of adapters on one model


@dataclass(eq=False)
class Worn:
    """An adapter that is on the model.

    adapter     what is known of it; the numbers themselves are the model's now
    dialect     a chat template and names of tokens that came with it
    said        what its manifest says of this base, None where it has no manifest
    """

    adapter: Adapter
    effect: Effect
    number: int
    nbytes: int
    dialect: Dialect = field(default_factory=Dialect)
    said: str | None = None
    leases: WeakSet[Lease] = field(default_factory=WeakSet)
    used: int = 0

    @property
    def identity(self) -> str:
        return self.adapter.identity

    def begins(self, ids: Sequence[int]) -> int | None:
        """The position of a prompt from which it acts; None: it does not. PEFT's rule for its aLoRA adapters."""
        invocation = self.adapter.invocation
        width = len(invocation)
        if not width:
            return 0
        starts = range(len(ids) - width, -1, -1)
        return next((at for at in starts if tuple(ids[at : at + width]) == invocation), None)


@dataclass(frozen=True, eq=False)
class Lease:
    """Keeps an adapter on the model while somebody holds it."""

    worn: Worn


class Wardrobe:
    """See the module's page.

    find: the folder of a name that was not offered; raises InputError. base: what manifests are compared with; None:
    they are not. allow_drift: whether an adapter goes on a base that changed since it was made.
    """

    def __init__(
        self,
        model: Gemma,
        lock: AbstractContextManager[None],
        *,
        find: Callable[[str], Path] | None = None,
        budget: int = USUAL_BUDGET,
        base: Base | None = None,
        allow_drift: bool = False,
    ) -> None:
        self.model, self.lock, self.find, self.budget = model, lock, find, budget
        self.base, self.allow_drift = base, allow_drift
        self._offered: dict[str, Path] = {}
        self._worn: dict[Path, Worn] = {}
        self._guard = threading.RLock()
        self._clock = 0

    @property
    def nbytes(self) -> int:
        """Of all that are on the model."""
        return sum(worn.nbytes for worn in self.worn)

    @property
    def worn(self) -> list[Worn]:
        """Those that are on the model, in the order in which they came."""
        return list(dict.fromkeys(self._worn.values()))

    @property
    def names(self) -> list[str]:
        """Those that were offered."""
        return list(self._offered)

    def is_loaded(self, name: str) -> bool:
        """Whether an offered one is on the model."""
        return self._offered.get(name) in self._worn

    # ---- names -----------------------------------------------------------------------------------------------------

    def offer(self, name: str, folder: str | Path) -> None:
        """Let requests ask for the adapter in ``folder`` by this name. Raises PromptError for a name that is taken."""
        path = Path(folder)
        if not name or ":" in name or self._offered.get(name, path) != path:
            raise PromptError(f"an adapter cannot be called {name[:100]!r}: the name is taken, empty or has a colon")
        self._offered[name] = path

    def add(self, name: str, folder: str | Path) -> Worn:
        """Offer an adapter and load it now.

        Raises CheckpointError for one that is damaged, does not fit or does not act, BusyError where those in use leave
        no room for it.
        """
        self.offer(name, folder)
        try:
            return self.take(name).worn
        except BaseException:
            del self._offered[name]
            raise

    def drop(self, name: str) -> None:
        """Offer it no more, and take it off the model. Raises PromptError for an unknown name, BusyError in use."""
        with self._guard:
            if name not in self._offered:
                raise PromptError(self._unknown(name))
            worn = self._worn.get(self._offered[name])
            if worn is not None and worn.leases:
                raise BusyError(f"the adapter {name!r} is in use")
            folder = self._offered.pop(name)
            if worn is not None and folder not in self._offered.values():
                self._take_off(worn)

    # ---- use -------------------------------------------------------------------------------------------------------

    def take(self, name: str | Path) -> Lease:
        """The adapter of this name, loaded if need be. Raises what ``add`` does, PromptError for an unknown name."""
        with self._guard:
            folder = self.folder(name)
            worn = self._worn.get(folder) or self._load(folder)
            self._clock += 1
            worn.used = self._clock
            lease = Lease(worn)
            worn.leases.add(lease)
            return lease

    def folder(self, name: str | Path) -> Path:
        """Where an adapter's files are. Raises PromptError, or what ``find`` does, for an unknown name."""
        if isinstance(name, str) and name in self._offered:
            return self._offered[name]
        if self.find is None:
            raise PromptError(self._unknown(str(name)))
        return self.find(str(name))

    def _unknown(self, name: str) -> str:
        return f"there is no adapter {name[:100]!r}; there are: {', '.join(self._offered) or 'none'}"

    def _load(self, folder: Path) -> Worn:
        config = self.model.config
        adapter = open_adapter(folder, None if config.experts is None else config.experts.num_experts)
        same = next((worn for worn in self.worn if worn.identity == adapter.identity), None)
        found = same or self._put_on(folder, adapter)
        self._worn[folder] = found
        return found

    def _put_on(self, folder: Path, adapter: Adapter) -> Worn:
        if any(id >= self.model.config.vocab_size for id in adapter.invocation):
            raise FormatError(f"{folder}: an id of alora_invocation_tokens is outside the vocabulary")
        dialect, (said, expected) = read_dialect(folder), self._checked(folder, adapter)
        self._make_room(adapter.nbytes // 2 if packed(self.model) else adapter.nbytes)
        with self.lock:
            mix = mix_of(self.model) or Mix(self.model)
            try:
                number, effect = put_and_prove(mix, adapter, expected)
                size = mix.sizes[number]
            finally:
                _close_empty(mix)
        return Worn(replace(adapter, deltas={}), effect, number, size, dialect, said)

    def _checked(self, folder: Path, adapter: Adapter) -> tuple[str | None, Probe | None]:
        """What its manifest says of this base, and what it does on this very one. Raises WeightsError."""
        manifest = manifest_in(folder)
        if manifest is None or self.base is None:
            return None, None
        found = checked(manifest, self.base, self.allow_drift, identity=adapter.identity)
        return found.text, manifest.probe if found.state == "exact" else None

    def _make_room(self, wanted: int) -> None:
        if wanted > self.budget:
            raise InputError(f"the adapter takes {wanted} bytes, and all adapters may take {self.budget}")
        while self.nbytes + wanted > self.budget:
            idle = [worn for worn in self.worn if not worn.leases]
            if not idle:
                raise BusyError("other adapters are in use and take the memory that adapters may have; try again")
            self._take_off(min(idle, key=lambda worn: worn.used))

    def _take_off(self, worn: Worn) -> None:
        self._worn = {folder: known for folder, known in self._worn.items() if known is not worn}
        with self.lock:
            mix = mix_of(self.model)
            if mix is not None:
                mix.drop(worn.number)
                _close_empty(mix)


def _close_empty(mix: Mix) -> None:
    """The model is as it was before its first adapter."""
    if not mix.sizes:
        mix.close()
