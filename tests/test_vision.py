"""Towers and merged logits of tiny twins equal transformers' in float32, from files through our own loaders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.engine.inserts import Insert, uncut
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import FormatError, MediaError, UnsupportedError, WeightsError
from pocketgem.model.build import build_model
from pocketgem.model.cache import Step
from pocketgem.model.gemma import Gemma, Soft
from pocketgem.model.towers import Towers
from tests.test_laws import finish
from tests.twins import VOCAB
from tests.vision_twins import IMAGE, SEEING, Image, SeeingTwin, make_seeing_twin

TOLERANCE = 1e-4
NEW_TOKENS = 6
# Runs of text between images of so many tokens down and across. The window is 8 tokens.
PROMPTS: dict[str, list[int | tuple[int, int]]] = {
    "one image": [5, (2, 3)],
    "text around it": [11, (4, 5), 7],  # longer than the window
    "several images": [3, (3, 3), 1, (1, 7), 12, (5, 1), 2],
}


@dataclass(frozen=True)
class Seen:
    """A prompt with images in it."""

    ids: list[int]
    images: list[Image]
    inserts: list[Insert]

    def soft(self) -> Soft:
        rows = torch.cat([torch.arange(insert.start, insert.stop) for insert in self.inserts])
        return Soft(rows, torch.cat([insert.vectors for insert in self.inserts]))  # type: ignore[misc]

    def last(self) -> Tensor:
        """The last position each row sees: its own, or its image's end."""
        last = torch.arange(len(self.ids))
        for insert in self.inserts:
            last[insert.start : insert.stop] = insert.stop - 1
        return last


@pytest.fixture(scope="module", params=list(SEEING))
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SeeingTwin:
    return make_seeing_twin(request.param, tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="module")
def checkpoint(twin: SeeingTwin) -> Checkpoint:
    return open_checkpoint(resolve(twin.folder))


@pytest.fixture(scope="module")
def towers(checkpoint: Checkpoint) -> Towers:
    return Towers.of(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Gemma:
    return build_model(checkpoint, torch.float32)


def prompt(twin: SeeingTwin, towers: Towers, pieces: list[int | tuple[int, int]]) -> Seen:
    ids: list[int] = []
    images, inserts = [], []
    generator = torch.Generator().manual_seed(7)
    for number, piece in enumerate(pieces):
        if isinstance(piece, int):
            ids += torch.randint(5, VOCAB, (piece,), generator=generator).tolist()
            continue
        image = twin.image(number, *piece)
        rows = towers.see(image.values, image.positions)
        whole = towers.config.sees_images_whole
        inserts.append(Insert(len(ids), len(rows), "image", bytes([number]) * 32, rows, whole))
        images.append(image)
        ids += [IMAGE] * len(rows)
    return Seen([*ids, 5], images, inserts)


@pytest.fixture(params=list(PROMPTS))
def seen(request: pytest.FixtureRequest, twin: SeeingTwin, towers: Towers) -> Seen:
    return prompt(twin, towers, PROMPTS[request.param])


# ---- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "across"), [(1, 1), (2, 3), (7, 2), (1, 9)])
def test_a_tower_makes_the_references_rows(twin: SeeingTwin, towers: Towers, down: int, across: int) -> None:
    image = twin.image(1, down, across)
    rows = towers.see(image.values, image.positions)
    assert rows.shape == (image.tokens, towers.config.hidden_size)
    torch.testing.assert_close(rows, twin.features(image), atol=TOLERANCE, rtol=0)


def test_the_order_of_patches_does_not_matter(twin: SeeingTwin, towers: Towers) -> None:
    image = twin.image(1, 4, 3)
    order = torch.randperm(len(image.values), generator=torch.Generator().manual_seed(1))
    expected = twin.features(image)
    if twin.name == "12B":  # a row for each patch: they come out in the order they went in
        expected = expected[order]
    torch.testing.assert_close(
        towers.see(image.values[order], image.positions[order]), expected, atol=TOLERANCE, rtol=0
    )


@torch.inference_mode()
def in_pieces(model: Gemma, seen: Seen, chunk: int) -> Tensor:
    """Logits of all rows, computed in chunks that cut no image which is seen whole."""
    cache, rows, soft, last = model.new_cache(), [], seen.soft(), seen.last()
    at = 0
    while at < len(seen.ids):
        count = uncut(seen.inserts, at, min(chunk, len(seen.ids) - at))
        inside = (soft.rows >= at) & (soft.rows < at + count)
        here = Soft(soft.rows[inside] - at, soft.vectors[inside]) if inside.any() else None
        step = Step.packed([cache], [count], logits=[count])
        if model.config.sees_images_whole:
            step = replace(step, last=last[at : at + count])
        rows.append(model.logits(model(model.embed(torch.tensor(seen.ids[at : at + count]), here), step)))
        step.commit()
        at += count
    return torch.cat(rows)


@pytest.mark.parametrize("chunk", [100, 7])
def test_merged_logits_are_the_references(twin: SeeingTwin, model: Gemma, seen: Seen, chunk: int) -> None:
    expected = twin.logits(seen.ids, seen.images)
    torch.testing.assert_close(in_pieces(model, seen, chunk), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("chunk", [100, 7])
def test_logits_behind_a_video_are_the_references(twin: SeeingTwin, model: Gemma, towers: Towers, chunk: int) -> None:
    if twin.name == "gemma3":
        assert not hasattr(twin.oracle.model, "get_video_features"), "Gemma 3 watches videos now"
        return
    seen = prompt(twin, towers, [4, (2, 3), 2, (2, 3), 2, (2, 3), 5])  # frames of one size, texts between them
    expected = twin.video_logits(seen.ids, seen.images)
    torch.testing.assert_close(in_pieces(model, seen, chunk), expected, atol=TOLERANCE, rtol=0)


def test_beside_strangers_an_engine_writes_what_the_reference_does(
    twin: SeeingTwin, model: Gemma, towers: Towers
) -> None:
    seen = prompt(twin, towers, PROMPTS["several images"])
    engine = Engine(model, Scheduler(chunk=9))
    params = SamplingParams(max_tokens=NEW_TOKENS)
    strangers = [Request(f"s{n}", tuple(range(6, 20 + n)), params) for n in range(3)]
    running = [engine.submit(stranger) for stranger in strangers]
    mine = engine.submit(Request("mine", tuple(seen.ids), params, inserts=tuple(seen.inserts)))
    written = finish(engine, mine, *running)
    assert written[0] == greedy(twin, seen.ids, seen.images)
    for stranger, ids in zip(strangers, written[1:], strict=True):
        assert ids == greedy(twin, list(stranger.prompt_ids), [])


def greedy(twin: SeeingTwin, ids: list[int], images: list[Image]) -> list[int]:
    known = list(ids)
    for _ in range(NEW_TOKENS):
        known.append(int(twin.logits(known, images)[-1].argmax()))
    return known[len(ids) :]


def test_another_image_changes_the_logits(twin: SeeingTwin, model: Gemma, towers: Towers) -> None:
    """What the comparisons above could not see if images reached neither side."""
    seen = prompt(twin, towers, PROMPTS["one image"])
    other = twin.image(99, 2, 3)
    rows = towers.see(other.values, other.positions)
    changed = replace(seen, inserts=[replace(seen.inserts[0], vectors=rows)])
    assert (in_pieces(model, seen, 100) - in_pieces(model, changed, 100))[-1].abs().max() > 0.01


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(twin: SeeingTwin, tmp_path: Path) -> Path:
    for file in twin.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def see(folder: Path) -> None:
    towers = Towers.of(open_checkpoint(resolve(folder)))
    assert towers.sees
    towers.see(torch.zeros(9, 48), torch.zeros(9, 2, dtype=torch.long))


@pytest.mark.parametrize("fault", ["missing", "shape", "surplus"])
def test_tensors_that_do_not_fit_are_named(twin: SeeingTwin, damaged: Path, fault: str) -> None:
    file = damaged / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "embed_vision" in name or "mm_input_projection" in name)
    if fault == "missing":
        del tensors[name]
    elif fault == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    else:
        tensors[name.rpartition(".")[0] + ".extra"] = torch.zeros(1)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"mm_input_projection|embedding_projection|extra"):
        see(damaged)


HOSTILE: dict[str, list[object]] = {
    "num_hidden_layers": [10**9, 1000, 1, True],
    "patch_size": [0, 5, 1 << 20],
    "hidden_size": [-1, 1 << 24, 1e3],
    "head_dim": [6, 1 << 24],
    "num_key_value_heads": [3],
    "position_embedding_size": ["many", 1 << 40],
    "mm_posemb_size": [1 << 40, None, 23],
    "mm_embed_dim": [1 << 24, [40]],
    "image_size": [1 << 24, 0, 3],
}


def test_a_hostile_config_is_refused_before_anything_is_built(twin: SeeingTwin, checkpoint: Checkpoint) -> None:
    vision, image = checkpoint.config.vision or {}, twin.image(1, 1, 1)
    tried = 0
    for key in HOSTILE.keys() & vision.keys():
        for value in HOSTILE[key]:
            config = replace(checkpoint.config, vision={**vision, key: value})
            with pytest.raises((FormatError, WeightsError), match=r"vision_config|tensors|the config says"):
                Towers(config, checkpoint.others, "here").see(image.values, image.positions)
            tried += 1
    assert tried >= 5


def test_patches_that_do_not_fit_are_refused(twin: SeeingTwin, towers: Towers) -> None:
    image = twin.image(1, 2, 2)
    with pytest.raises(MediaError, match="numbers"):
        towers.see(image.values[:, :-3], image.positions)
    with pytest.raises(MediaError, match="places"):
        towers.see(image.values, image.positions + 1000)


def test_gemma_3ns_tower_is_refused_with_a_reason(checkpoint: Checkpoint) -> None:
    config = replace(checkpoint.config, family="gemma3n")
    with pytest.raises(UnsupportedError, match="MobileNet"):
        Towers(config, checkpoint.others, "here").see(torch.zeros(1, 1), torch.zeros(1, 2))


def test_a_dropped_tower_comes_back(twin: SeeingTwin, checkpoint: Checkpoint) -> None:
    towers, image = Towers.of(checkpoint), twin.image(3, 2, 2)
    assert towers.nbytes == 0
    first = towers.see(image.values, image.positions)
    held = towers.nbytes
    towers.drop()
    assert held > 0
    assert towers.nbytes == 0
    assert torch.equal(towers.see(image.values, image.positions), first)
