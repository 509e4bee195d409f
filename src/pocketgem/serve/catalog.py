"""``/v1/models``. OpenAI's and Anthropic's clients ask for the same path, so one answer has what both look for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Listed:
    """A model that can be asked for.

    created     Unix seconds: when its file was last written
    context     tokens of prompt and answer together, None while nobody has looked
    chat        whether it has a chat template
    loaded      whether it is in memory
    takes       text, image, audio, video: what a prompt can hold, None while nobody has looked
    parent      the model that this is with an adapter on
    """

    id: str
    created: int
    context: int | None = None
    chat: bool | None = None
    loaded: bool | None = None
    takes: tuple[str, ...] | None = None
    parent: str | None = None


def entry(model: Listed) -> dict[str, object]:
    """One model. ``context_length``, ``chat``, ``loaded``, ``input_modalities`` and ``parent`` are extensions."""
    takes = None if model.takes is None else list(model.takes)
    extensions = {
        "context_length": model.context,
        "chat": model.chat,
        "loaded": model.loaded,
        "input_modalities": takes,
        "parent": model.parent,
    }
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "pocketgem",
        "type": "model",
        "display_name": model.id,
        "created_at": datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model.context,
        **{name: value for name, value in extensions.items() if value is not None},
    }


def catalog(models: Sequence[Listed]) -> dict[str, object]:
    """All of them, on one page."""
    ends = {"first_id": models[0].id, "last_id": models[-1].id} if models else {"first_id": None, "last_id": None}
    return {"object": "list", "data": [entry(model) for model in models], "has_more": False, **ends}
