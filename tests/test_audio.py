"""Audio towers and what the text model makes of their rows, against transformers in float32."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.mmproj_audio import SCALE_AS_IS
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.config.fields import Fields
from pocketgem.engine.inserts import Insert
from pocketgem.engine.loop import Engine
from pocketgem.engine.request import Request, SamplingParams
from pocketgem.engine.scheduler import Scheduler
from pocketgem.errors import UnsupportedError, WeightsError
from pocketgem.media.kinds import Floats, Sound
from pocketgem.model.audio import build_audio
from pocketgem.model.build import build_model
from pocketgem.model.cache import Step
from pocketgem.model.conformer import read_conformer
from pocketgem.model.gemma import Gemma, Soft
from pocketgem.model.towers import Towers
from tests.audio_twins import AUDIO, HEARING, IMAGE, PREPARE, hearing_twin, oracle_merged, oracle_rows, sound
from tests.test_laws import finish, prompt
from tests.twins import VOCAB, Twin
from tests.vision_twins import SeeingTwin

TOLERANCE = 1e-4
NEW_TOKENS = 3
TEXT = prompt(0, 30)
CONFORMER = pytest.mark.parametrize("twin", ["E2B"], indirect=True)  # the 12B has no encoder


@pytest.fixture(scope="module", params=list(HEARING))
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return hearing_twin(request.param, tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="module")
def checkpoint(twin: Twin) -> Checkpoint:
    return open_checkpoint(resolve(twin.folder))


@pytest.fixture(scope="module")
def towers(checkpoint: Checkpoint) -> Towers:
    return Towers.of(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Gemma:
    return build_model(checkpoint, torch.float32)


def values_of(twin: Twin, heard: Sound) -> Floats:
    return PREPARE[twin.name](heard).values


def rows_of(towers: Towers, values: Floats) -> Tensor:
    return towers.hear(torch.from_numpy(np.ascontiguousarray(values)))


# ---- the towers ------------------------------------------------------------------------------------------------------

# Samples: one frame; four and five frames (one token, two); 12 and 13 tokens, about a block's border; five blocks and
# some; 12B tokens that are not full.
COUNTS = [161, 161 + 3 * 160, 161 + 4 * 160, 161 + 47 * 160, 161 + 48 * 160, 40_000]


@pytest.mark.parametrize("count", COUNTS)
def test_rows_equal_transformers(twin: Twin, towers: Towers, count: int) -> None:
    heard = sound(count)
    prepared = PREPARE[twin.name](heard)
    (expected,) = oracle_rows(twin, [prepared.values])
    found = rows_of(towers, prepared.values)
    assert found.shape == (prepared.tokens, towers.config.hidden_size)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_a_sound_is_the_same_beside_longer_ones(twin: Twin, towers: Towers) -> None:
    values = [values_of(twin, sound(count)) for count in (5_000, 20_000, 8_192)]
    for one, expected in zip(values, oracle_rows(twin, values), strict=True):
        torch.testing.assert_close(rows_of(towers, one), expected, atol=TOLERANCE, rtol=0)


@CONFORMER
def test_clips_cut_in_these_twins(twin: Twin, towers: Towers, checkpoint: Checkpoint) -> None:
    """Else the tests above would say nothing of them."""
    values = values_of(twin, sound(20_000))
    audio = {**(checkpoint.config.audio or {}), "use_clipped_linears": False}
    others = {name: tensor for name, tensor in checkpoint.others.items() if "put_m" not in name}
    free = Towers(replace(checkpoint.config, audio=audio), others, "free")
    assert (rows_of(free, values) - rows_of(towers, values)).abs().max() > 0.01


@CONFORMER
def test_scales_of_an_mmproj_file_are_taken_as_they_are(twin: Twin, checkpoint: Checkpoint) -> None:
    renamed = {name.replace("self_attn.per_dim_scale", SCALE_AS_IS): t for name, t in tensors_of(checkpoint).items()}
    tower = build_audio(checkpoint.config, renamed, "m")
    stored = tensors_of(checkpoint)["audio_tower.layers.0.self_attn.per_dim_scale"].dense()
    assert torch.equal(tower.get_parameter("audio_tower.layers.0.self_attn.per_dim_scale"), stored)


# ---- what is refused -------------------------------------------------------------------------------------------------


def tensors_of(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    named = {name.removeprefix("model."): tensor for name, tensor in checkpoint.others.items()}
    return {name: tensor for name, tensor in named.items() if name.startswith(("audio_tower.", "embed_audio."))}


PROJECTION = "embed_audio.embedding_projection.weight"


def test_tensors_that_do_not_fit_are_refused(checkpoint: Checkpoint) -> None:
    config, tensors = checkpoint.config, tensors_of(checkpoint)
    without = {name: tensor for name, tensor in tensors.items() if name != PROJECTION}
    with pytest.raises(WeightsError, match=f"1 tensors of .* missing, first {PROJECTION}"):
        build_audio(config, without, "m")
    with pytest.raises(WeightsError, match=r"no place in the tower, first audio_tower\.more"):
        build_audio(config, {**tensors, "audio_tower.more": tensors[PROJECTION]}, "m")
    turned = replace(tensors[PROJECTION], shape=tensors[PROJECTION].shape[::-1])
    with pytest.raises(WeightsError, match="the config says"):
        build_audio(config, {**tensors, PROJECTION: turned}, "m")


@CONFORMER
def test_scales_in_two_forms_are_refused(twin: Twin, checkpoint: Checkpoint) -> None:
    tensors = tensors_of(checkpoint)
    scale = tensors["audio_tower.layers.0.self_attn.per_dim_scale"]
    with pytest.raises(WeightsError, match="two forms"):
        build_audio(checkpoint.config, {**tensors, f"audio_tower.layers.0.{SCALE_AS_IS}": scale}, "m")


def test_another_familys_tower_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UnsupportedError, match="gemma3n are not run"):
        build_audio(replace(checkpoint.config, family="gemma3n"), {}, "m")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 3),
        ("attention_context_right", 1),
        ("attention_chunk_size", 16),
        ("subsampling_conv_channels", [64, 32]),
        ("hidden_act", "relu"),
    ],
)
def test_sizes_that_no_release_has_are_refused(key: str, value: object) -> None:
    with pytest.raises(UnsupportedError):
        read_conformer(Fields({key: value}, "audio_config"))


# ---- in a prompt -----------------------------------------------------------------------------------------------------


class Prompted:
    """Text with two sounds among it, as ids, as the reference's frames and as our inserts."""

    def __init__(self, twin: Twin, towers: Towers) -> None:
        sounds = [sound(3_000), sound(9_500)]
        self.values = [values_of(twin, heard) for heard in sounds]
        rows = [rows_of(towers, values) for values in self.values]
        first, second = map(len, rows)
        self.ids = [*TEXT[:5], *[AUDIO] * first, *TEXT[5:9], *[AUDIO] * second, *TEXT[9:14]]
        starts = (5, 5 + first + 4)
        self.inserts = tuple(
            Insert(start, len(one), "audio", bytes([start]) * 32, one) for start, one in zip(starts, rows, strict=True)
        )


class Seen:
    """A picture and a sound, text around them, in one order or the other."""

    def __init__(self, twin: Twin, towers: Towers, *, picture_first: bool) -> None:
        image = SeeingTwin(twin.name, twin.oracle, twin.folder).image(3, 1, 2)
        self.images, self.values = [image], [values_of(twin, sound(5_000))]
        seen, heard = towers.see(image.values, image.positions), rows_of(towers, self.values[0])
        both = [(IMAGE, seen, "image"), (AUDIO, heard, "audio")]
        self.ids, inserts = TEXT[:4], []
        for id, rows, kind in both if picture_first else reversed(both):
            inserts.append(Insert(len(self.ids), len(rows), kind, kind.encode() * 6, rows))
            self.ids = [*self.ids, *[id] * len(rows), *TEXT[4:7]]
        self.inserts = tuple(inserts)


@pytest.fixture(scope="module")
def prompted(twin: Twin, towers: Towers) -> Prompted:
    return Prompted(twin, towers)


@torch.inference_mode()
def logits(model: Gemma, prompted: Prompted | Seen, sizes: Sequence[int]) -> Tensor:
    """Of every row, the prompt being fed in pieces of ``sizes``."""
    cache, found, start = model.new_cache(), [], 0
    for size in sizes:
        stop = min(start + size, len(prompted.ids))
        places = [(i, one) for one in prompted.inserts for i in range(one.start, one.stop) if start <= i < stop]
        vectors = [one.vectors[i - one.start] for i, one in places]  # type: ignore[index]
        soft = Soft(torch.tensor([i - start for i, _ in places]), torch.stack(vectors)) if places else None
        step = Step.packed([cache], [stop - start], logits=[stop - start])
        found.append(model.logits(model(model.embed(torch.tensor(prompted.ids[start:stop]), soft), step)))
        step.commit()
        start = stop
    return torch.cat(found)


@pytest.fixture(scope="module")
def expected(twin: Twin, prompted: Prompted) -> Tensor:
    return oracle_merged(twin, prompted.ids, prompted.values)


@pytest.mark.parametrize("size", [1000, 7, 1], ids=["at once", "in chunks", "step by step"])
def test_merged_logits_equal_transformers(model: Gemma, prompted: Prompted, expected: Tensor, size: int) -> None:
    sizes = [size] * -(-len(prompted.ids) // size)
    torch.testing.assert_close(logits(model, prompted, sizes), expected, atol=TOLERANCE, rtol=0)


@CONFORMER
@pytest.mark.parametrize("size", [1000, 3], ids=["at once", "in chunks"])
@pytest.mark.parametrize("picture_first", [True, False])
def test_a_picture_and_a_sound_in_one_prompt(
    twin: Twin, towers: Towers, model: Gemma, picture_first: bool, size: int
) -> None:
    seen = Seen(twin, towers, picture_first=picture_first)
    expected = oracle_merged(twin, seen.ids, seen.values, seen.images)
    sizes = [size] * -(-len(seen.ids) // size)
    torch.testing.assert_close(logits(model, seen, sizes), expected, atol=TOLERANCE, rtol=0)


def test_the_engine_answers_as_transformers_would(twin: Twin, model: Gemma, prompted: Prompted) -> None:
    """Greedy, in chunks that cut the sounds, beside strangers; and once more from the kept past."""
    known = list(prompted.ids)
    for _ in range(NEW_TOKENS):
        known.append(int(oracle_merged(twin, known, prompted.values)[-1].argmax()))
    expected = known[len(prompted.ids) :]
    assert AUDIO not in expected, "the reference would take its own answer for a sound"
    engine = Engine(model, Scheduler(chunk=5))
    params = SamplingParams(max_tokens=NEW_TOKENS)
    strangers = [engine.submit(Request("s", tuple(prompt(n)), params)) for n in range(2)]
    mine = engine.submit(Request("m", tuple(prompted.ids), params, inserts=prompted.inserts))
    assert finish(engine, mine, *strangers)[0] == expected
    again = engine.submit(Request("n", tuple(prompted.ids), params, inserts=prompted.inserts))
    assert finish(engine, again)[0] == expected
    assert again.num_reused > 0


def test_placeholders_are_in_the_vocabulary() -> None:
    assert AUDIO < VOCAB


# ---- types of weights ------------------------------------------------------------------------------------------------


def test_bfloat16_weights_stay_as_they_are_stored(twin: Twin, tmp_path: Path) -> None:
    """Rows are those of the same weights in float32: products are in float32 either way."""
    deepcopy(twin.oracle).to(torch.bfloat16).save_pretrained(tmp_path)
    stored = open_checkpoint(resolve(tmp_path))
    towers = Towers.of(stored)
    values = values_of(twin, sound(9_000))
    found = rows_of(towers, values)
    tower = build_audio(stored.config, tensors_of(stored), "m")
    assert tower.get_parameter(PROJECTION).dtype is torch.bfloat16
    with torch.inference_mode():
        expected = tower.float()(torch.from_numpy(np.ascontiguousarray(values)))
    assert torch.equal(found, expected)
