"""Where a prompt's past is worth keeping: the positions from which another prompt is likely to go on differently.

A chat's next turn repeats the prompt, and then says the answer as the template renders it, often without its thoughts;
an edit begins at the start of a turn; another conversation begins with the same system turn. So: the end of the first
turn, the starts of the last three, what the caller names, where an adapter begins to act (all before it is the base's,
for whoever comes), and the last token but one (the last is computed again, for its logits).
"""

from __future__ import annotations

from collections.abc import Collection

from pocketgem.engine.request import Request

LAST_TURNS = 3  # an answer that is asked for again, a question that is edited, and the answer before it
MOST_NAMED = 8  # positions a caller may name; of more the last ones are taken


def keep_points(request: Request, turn_ids: Collection[int]) -> list[int]:
    """Positions in descending order: tokens before them are kept. ``turn_ids`` open a turn."""
    ids, last = request.prompt_ids, len(request.prompt_ids) - 1
    turns = [at for at, id in enumerate(ids) if id in turn_ids] if turn_ids else []
    named = sorted(at for at in request.checkpoints if 0 < at <= last)[-MOST_NAMED:]
    return sorted(
        {at for at in (*named, *turns[1:2], *turns[-LAST_TURNS:], request.adapter_from, last) if at > 0}, reverse=True
    )
