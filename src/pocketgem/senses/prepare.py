"""What a model's towers take of a picture, a sound or a clip: by its config, in numbers of rows that are known before
any tower runs."""

from __future__ import annotations

from dataclasses import dataclass

from pocketgem.config import ModelConfig
from pocketgem.errors import MediaError
from pocketgem.media import patches
from pocketgem.media.given import Budget
from pocketgem.media.kinds import Clip, Frames, Patches, Picture, Sound
from pocketgem.media.mel import MAX_SECONDS, mel, waves
from pocketgem.media.pieces import cut

NO_SOUND = "the video has sound, which is not heard: a model takes its pictures only; give the sound as audio"


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a tower takes for each run of rows, with what a person should know."""

    takes: tuple[Patches | Frames, ...]
    stamps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def prepared(config: ModelConfig, content: Picture | Sound | Clip, budget: Budget) -> Prepared:
    """What the towers take of a medium. ``budget``: of an image, or of each frame. Raises MediaError."""
    if isinstance(content, Picture):
        return _picture(config, content, budget)
    return _sound(config, content) if isinstance(content, Sound) else _clip(config, content, budget)


def _picture(config: ModelConfig, given: Picture, budget: Budget) -> Prepared:
    """One run. Raises MediaError."""
    take = _patches(config, given, budget)
    height, width = given.size
    note = f"an image of {width}x{height} was made smaller for {take.tokens} tokens; fine detail is lost"
    return Prepared((take,), notes=(note,) if take.shrunk else ())


def _clip(config: ModelConfig, given: Clip, budget: Budget) -> Prepared:
    """A run for each frame. Raises MediaError."""
    if not given.frames:
        raise MediaError("the video shows nothing: it has no frames")
    takes = tuple(_patches(config, frame, budget) for frame in given.frames)
    return Prepared(takes, tuple(map(stamp, given.seconds)), (NO_SOUND,) if given.has_sound else ())


def _sound(config: ModelConfig, given: Sound) -> Prepared:
    """A run, or several where it lasts longer than a model hears at once: they meet where it is quiet."""
    pieces = cut(given)
    sounds = (Sound(given.samples[piece.own : piece.stop]) for piece in pieces)
    takes = tuple(waves(one) if config.unified else mel(one) for one in sounds)
    note = f"{given.seconds:.0f} s of sound are heard in {len(pieces)} pieces of {MAX_SECONDS} s at most"
    return Prepared(takes, notes=(note,) if len(pieces) > 1 else ())


def stamp(seconds: float) -> str:
    """MM:SS, as Gemma 4 was taught to read when a frame is shown."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def _patches(config: ModelConfig, given: Picture, budget: Budget) -> Patches:
    return patches.prepare(config, given, patches.smallest_budget(*given.size) if budget == "auto" else budget)
