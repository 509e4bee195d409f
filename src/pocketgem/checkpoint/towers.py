"""Whether the tensors of a tower are those its config asks for: looked at before anything is built or read."""

from __future__ import annotations

from collections.abc import Mapping

from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config.towers import Shape
from pocketgem.errors import WeightsError


def check_tower(wanted: Mapping[str, Shape], present: Mapping[str, StoredTensor], where: str) -> None:
    """Compare names and shapes.

    Raises WeightsError for tensors that are missing, of the wrong shape, or that nothing in the tower takes.
    """
    if missing := sorted(wanted.keys() - present.keys()):
        raise WeightsError(f"{where}: {len(missing)} tensors of the tower are missing, first {missing[0]}")
    if surplus := sorted(present.keys() - wanted.keys()):
        raise WeightsError(f"{where}: {len(surplus)} tensors have no place in the tower, first {surplus[0][:80]}")
    for name, shape in wanted.items():
        if present[name].shape != shape:
            raise WeightsError(f"{where}: {name} is {list(present[name].shape)}, the config says {list(shape)}")
