"""Attacks on the readers of model files, one test (or a few) for each row G1..G16 and S1..S13 of our list of threats.

Rows about names inside a model (G8, G9, G13), running a damaged model (G5) and what we do not have (digests, archives,
tokens sent to registries: S7, S10, S11) have their tests elsewhere or need none.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import safetensors
import torch

import pocketgem.checkpoint
from pocketgem.checkpoint import header as gguf_header
from pocketgem.checkpoint import safetensors as st
from pocketgem.checkpoint import unpack
from pocketgem.checkpoint.dequant import dequantize
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.safetensors import INDEX, SINGLE, open_safetensors
from pocketgem.checkpoint.types import GGML_TYPES, StoredType, tensor_bytes
from pocketgem.checkpoint.write import write_gguf
from pocketgem.errors import CheckpointError, FormatError, PocketgemError
from tests import fuzz_checkpoint as fuzz
from tests import test_resolve
from tests.fuzz_checkpoint import ABSURD, ARCHITECTURE, ARRAY, STRING, VALUES, entry, gguf_bytes, safetensors_bytes

hub = test_resolve.hub
NOT_REGULAR = r"not a regular file|cannot be opened"
SEED = gguf_bytes(
    [ARCHITECTURE, ("general.alignment", 4, 32), ("texts", ARRAY, (STRING, ["a", "bc"])), ("ints", ARRAY, (4, [1, 2]))],
    [("a", (64, 3), 2), ("b", (5,), 0), ("c", (256,), 14)],
)
OPENERS: list[Callable[[Path], object]] = [GGUFFile.open, open_safetensors]
SOURCES = sorted(Path(pocketgem.checkpoint.__path__[0]).glob("*.py"))


def patched(data: bytes | bytearray, changes: dict[tuple[int, int, str], int]) -> bytes:
    out = bytearray(data)
    for (offset, width, _), value in changes.items():
        out[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(out)


def write(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    return path


# --- GGUF


def test_g1_absurd_counts_and_lengths_alone_and_in_pairs() -> None:
    for seed in fuzz.GGUF_SEEDS:
        for place, value in itertools.product(seed.fields, ABSURD):
            data = patched(seed.data, {place: value})
            assert fuzz.peak_bytes(fuzz.check_gguf_header, data) < len(data) + fuzz.SLACK
    for one, two in itertools.combinations(SEED.fields, 2):
        for values in itertools.product(ABSURD, repeat=2):
            fuzz.check_gguf_header(patched(SEED.data, dict(zip((one, two), values, strict=True))))


def test_g2_sizes_equal_a_big_integer_oracle() -> None:
    rng = random.Random(2)
    for _ in range(2000):
        kind = rng.choice(list(StoredType))
        dims = [rng.choice([*ABSURD[1:], rng.getrandbits(64) + 1]) for _ in range(rng.randrange(1, 5))]
        dims[-1] *= kind.block_size
        weights = 1
        for dim in dims:
            weights *= dim
        assert tensor_bytes(dims, kind) == Fraction(weights, kind.block_size) * kind.type_size
        position, alignment = rng.getrandbits(rng.randrange(1, 80)), 1 << rng.randrange(3, 17)
        padded = gguf_header._aligned(position, alignment)
        assert padded % alignment == 0
        assert 0 <= padded - position < alignment


def test_g3_numbers_from_files_are_python_integers() -> None:
    """Nothing that adds or multiplies them may import a library whose integers wrap."""
    for path in SOURCES:
        if path.name in ("header.py", "metadata.py", "safetensors.py", "gguf.py"):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
            assert not {name.split(".")[0] for name in imported} & {"numpy", "torch", "ctypes", "array"}


def test_g4_zero_in_every_dimension() -> None:
    for place in [place for place in SEED.fields if place[2] == "dimension"]:
        with pytest.raises(FormatError, match="has shape"):
            gguf_header.parse_header(patched(SEED.data, {place: 0}), len(SEED.data))
    for shape in ([0], [0, 3], [3, 0], [2, 0, 2]):
        with pytest.raises(FormatError, match="empty"):
            st.parse_header(data := safetensors_bytes({"t": entry("F32", shape, 0, 0)}), len(data))


def test_g6_tensors_past_the_end_of_the_file() -> None:
    header = gguf_header.parse_header(SEED.data, len(SEED.data))
    for tensor in header.tensors:
        for end in (tensor.start, tensor.start + 1, tensor.end - 1):
            with pytest.raises(FormatError, match=f"tensor '{tensor.name}' ends at byte"):
                gguf_header.parse_header(bytes(SEED.data[:end]), end)


def test_g6_the_writer_copies_no_neighbouring_memory(tmp_path: Path) -> None:
    canary = torch.full((64, 64), 1.0).mul_(123456.0)
    canary[10:13, 32:] = 0
    values = canary[10:13, 32:]  # a window into poisoned memory
    for kind in (StoredType.F32, StoredType.Q8_0, StoredType.F16):
        write_gguf(tmp_path / "x.gguf", "gemma3", {}, [("a", values, kind), ("b", values[:1, :32], kind)])
        file = GGUFFile.open(tmp_path / "x.gguf")
        data = (tmp_path / "x.gguf").read_bytes()
        assert not any(data[min(tensor.data.storage_offset() for tensor in file.tensors.values()) :])


def test_g7_more_weights_than_32_bits_count(tmp_path: Path) -> None:
    """Offsets beyond 2^32, in a file that is mostly a hole."""
    rows, width = 70_000, 65_536
    built = gguf_bytes([ARCHITECTURE], [("t", (width, 1), 24)])
    place = [place for place in built.fields if place[2] == "dimension"][1]
    header = gguf_header.parse_header(built.data, len(built.data))
    path = tmp_path / "x.gguf"
    with path.open("wb") as out:
        out.write(patched(built.data, {place: rows})[: header.tensors[0].start])
        out.seek(header.tensors[0].start + (rows - 1) * width)
        out.write(b"\7" * width)
    tensor = GGUFFile.open(path).tensors["t"]
    assert tensor.numel > 1 << 32
    assert tensor.rows(torch.tensor([0, rows - 1])).sum(dim=1).tolist() == [0, 7 * width]


@pytest.mark.parametrize("key", ["general.architecture", "general.alignment", "split.count", "split.no"])
@pytest.mark.parametrize("kind", [*VALUES, ARRAY])
def test_g10_every_value_type_under_every_key_we_read(tmp_path: Path, key: str, kind: int) -> None:
    value = (4, [1]) if kind == ARRAY else VALUES[kind][1]
    keys = {"general.architecture": ARCHITECTURE, "split.count": ("split.count", 2, 2), key: (key, kind, value)}
    if not key.startswith("split"):
        del keys["split.count"]
    path = write(tmp_path / "x-00001-of-00002.gguf", gguf_bytes(list(keys.values()), []).data)
    if key == "general.architecture" and kind == STRING:
        assert GGUFFile.open(path).architecture == value
    else:  # no example value is a possible alignment, part or count
        with pytest.raises(PocketgemError, match=r"general\.|split\.|missing|part of a set"):
            GGUFFile.open(path)


@pytest.mark.parametrize("alignment", [0, 1, 3, 1 << 31, 1 << 63])
def test_g11_hostile_alignments_and_names(alignment: int) -> None:
    for keys in ([("general.alignment", 10, alignment)], [("", 4, 1)], [ARCHITECTURE, ARCHITECTURE]):
        built = gguf_bytes([ARCHITECTURE, *keys], [("a", (8,), 0)])
        with pytest.raises(FormatError):
            gguf_header.parse_header(built.data, len(built.data))


def test_g11_no_check_is_an_assert() -> None:
    """``python -O`` removes asserts; what they guarded would then be open."""
    for path in SOURCES:
        assert not [
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Assert)
        ]


def test_g12_a_library_that_reads_something_else_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.safetensors", safetensors_bytes({"t": entry("F32", [2], 0, 8)}, bytes(8)))
    other = write(tmp_path / "y.safetensors", safetensors_bytes({"t": entry("F32", [3], 0, 12)}, bytes(12)))
    real = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda _, framework: real(other, framework=framework))
    with pytest.raises(FormatError, match="differently"):
        open_safetensors(path)


def test_g14_the_mutator_finds_a_planted_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that trusts a size 32 bytes too far: one of the first few thousand cases must trip over it."""
    real: Callable[..., object] = gguf_header._lay_out
    monkeypatch.setattr(gguf_header, "_lay_out", lambda *args: real(*args[:3], args[3] + 32, args[4]))
    with pytest.raises(AssertionError):
        run_cases(20_000)


def run_cases(count: int) -> None:
    for number in range(count):
        fuzz.check_gguf_header(fuzz.gguf_case(14, number))


Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "truncated": lambda path: os.truncate(path, 10),
    "extended": lambda path: os.truncate(path, path.stat().st_size + 4096),
    "rewritten": lambda path: os.utime(path, ns=(1, 1)),  # what a write of the same size leaves behind
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_g15_a_file_changed_while_open(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "x.gguf", SEED.data)
    tensor = GGUFFile.open(path).tensors["a"]
    tensor.dense()
    CHANGES[change](path)
    reads: list[Callable[[], object]] = [tensor.dense, lambda: tensor.rows(torch.tensor([1]))]
    for read in reads:
        with pytest.raises(CheckpointError, match=r"x\.gguf: the file was changed while in use"):
            read()


@pytest.mark.parametrize("change", list(CHANGES))
def test_g15_a_file_changed_in_the_middle_of_a_tensor(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.gguf", SEED.data)
    tensor = GGUFFile.open(path).tensors["a"]

    def change_after(blocks: torch.Tensor, kind: StoredType) -> torch.Tensor:
        result = dequantize(blocks, kind)
        CHANGES[change](path)
        return result

    monkeypatch.setattr(unpack, "CHUNK", 32)
    monkeypatch.setattr(unpack, "dequantize", change_after)
    with pytest.raises(CheckpointError, match="changed while in use"):
        tensor.dense()


def test_g15_a_file_replaced_by_renaming_stays_readable(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", SEED.data)
    tensor = GGUFFile.open(path).tensors["a"]
    before = tensor.dense()
    os.replace(write(tmp_path / "y.gguf", b"short"), path)
    assert torch.equal(tensor.dense(), before)


def part(number: int, count: int = 3, total: int = 3, name: str | None = None, arch: str | None = None) -> bytes:
    """Part ``number`` (from 0) of a set in which each part has one tensor."""
    keys: list[fuzz.Key] = [("split.no", 2, number), ("split.count", 2, count), ("split.tensors.count", 5, total)]
    if number == 0 or arch:
        keys.append(("general.architecture", STRING, arch or "gemma3"))
    return bytes(gguf_bytes(keys, [(name or f"t{number}", (4,), 0)]).data)


def lay_out(folder: Path, *parts: bytes | None) -> list[Path]:
    paths = [folder / f"m-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]
    for path, data in zip(paths, parts, strict=True):
        if data is not None:
            path.write_bytes(data)
    return paths


def test_g16_a_whole_set_opens_from_any_part(tmp_path: Path) -> None:
    for path in lay_out(tmp_path, part(0), part(1), part(2)):
        file = GGUFFile.open(path)
        assert (file.architecture, list(file.tensors)) == ("gemma3", ["t0", "t1", "t2"])


@pytest.mark.parametrize("order", [order for order in itertools.product(range(3), repeat=3) if order != (0, 1, 2)])
def test_g16_parts_in_any_other_order_are_refused(tmp_path: Path, order: tuple[int, int, int]) -> None:
    for path in lay_out(tmp_path, *[part(number) for number in order]):
        with pytest.raises(FormatError, match="says it is part"):
            GGUFFile.open(path)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_g16_a_missing_part_is_named(tmp_path: Path, missing: int) -> None:
    paths = lay_out(tmp_path, *[None if number == missing else part(number) for number in range(3)])
    with pytest.raises(CheckpointError, match=rf"0000{missing + 1}-of-00003\.gguf: missing"):
        GGUFFile.open(paths[(missing + 1) % 3])


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((part(0), part(1, name="t0"), part(2)), "'t0' is also in another part"),
        ((part(0, total=4), part(1, total=4), part(2, total=4)), "must hold 4 tensors.* hold 3"),
        ((part(0), part(1, count=4), part(2)), "split.count is 4"),
        ((part(0), part(1, total=9), part(2)), "split.tensors.count is 9"),
        ((part(0), part(1), part(2, arch="gemma4")), "not one model"),
        ((part(0, count=5), part(1), part(2)), "part of a set of 5"),
        ((part(0, count=0), part(1), part(2)), None),  # says that it stands alone, and does
    ],
)
def test_g16_lies_about_the_set(tmp_path: Path, parts: tuple[bytes, ...], match: str | None) -> None:
    path = lay_out(tmp_path, *parts)[0]
    if match is None:
        assert list(GGUFFile.open(path).tensors) == ["t0"]
    else:
        with pytest.raises(FormatError, match=match):
            GGUFFile.open(path)


# --- safetensors

ONE = {"t": entry("F32", [1], 0, 4)}
S1: dict[str, bytes] = {
    "header longer than the file": safetensors_bytes(ONE, bytes(4), 1 << 20),
    "header over the cap": struct.pack("<Q", st.MAX_HEADER + 1) + b"{}" + b" " * (st.MAX_HEADER - 1),
    "offset outside": safetensors_bytes({"t": entry("F32", [1], 4, 8)}, bytes(4)),
    "offset negative": safetensors_bytes({"t": entry("F32", [1], -4, 0)}, bytes(4)),
    "overlap": safetensors_bytes({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
    "same bytes a thousand times": safetensors_bytes({f"t{i}": entry("F32", [1], 0, 4) for i in range(1000)}, bytes(4)),
    "shape larger than its range": safetensors_bytes({"t": entry("F32", [1 << 40], 0, 4)}, bytes(4)),
    "a million dimensions": safetensors_bytes({"t": entry("F32", [1 << 62] * 1_000_000, 0, 4)}, bytes(4)),
    "a hundred thousand tensors": safetensors_bytes(
        {f"t{i}": entry("I8", [1], i, i + 1) for i in range(100_000)}, bytes(100_000)
    ),
    "deep nesting": safetensors_bytes(b'{"t":' + b"[" * 1_000_000 + b"}", bytes(4)),
    "endless number": safetensors_bytes(b'{"t":' + b"9" * 1_000_000 + b"}", bytes(4)),
    "a name twice": safetensors_bytes(f'{{"t":{json.dumps(ONE["t"])},"t":{json.dumps(ONE["t"])}}}'.encode(), bytes(4)),
    "a field twice": safetensors_bytes(
        b'{"t":{"dtype":"I8","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "not text": safetensors_bytes(b'{"\xff":' + json.dumps(ONE["t"]).encode() + b"}", bytes(4)),
    "half a character": safetensors_bytes(b'{"\\ud800":' + json.dumps(ONE["t"]).encode() + b"}", bytes(4)),
    "bytes nobody owns": safetensors_bytes(ONE, bytes(8)),
    "a gap": safetensors_bytes({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12)),
}


@pytest.mark.parametrize("attack", list(S1))
def test_s1_the_attacks_of_the_format_itself(tmp_path: Path, attack: str) -> None:
    with pytest.raises(FormatError, match=r"x\.safetensors: ") as caught:
        open_safetensors(write(tmp_path / "x.safetensors", S1[attack]))
    assert len(str(caught.value)) < 600


def polyglots() -> Iterator[tuple[str, bytes]]:
    good = safetensors_bytes(ONE, bytes(4))
    raw = json.dumps(ONE).encode()
    for name, foreign in (
        ("zip", b"PK\x05\x06" + bytes(18)),
        ("pdf", b"%PDF-1.7\n%%EOF"),
        ("html", b"<script></script>"),
    ):
        yield f"{name} behind", good + foreign
        yield f"{name} in front", foreign + good
        yield f"{name} in the padding", safetensors_bytes(raw + foreign, bytes(4))
        gap = {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 4 + len(foreign), 8 + len(foreign))}
        yield f"{name} in a gap", safetensors_bytes(gap, bytes(4) + foreign + bytes(4))
    for padding in (b"\t", b"\n", b"\0", b" \n ", b"{}"):
        yield f"padding {padding!r}", safetensors_bytes(raw + padding, bytes(4))
        yield f"leading {padding!r}", safetensors_bytes(padding + raw, bytes(4))


@pytest.mark.parametrize(("name", "data"), [pytest.param(name, data, id=name) for name, data in polyglots()])
def test_s2_no_other_file_fits_inside(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(FormatError):
        open_safetensors(write(tmp_path / "x.safetensors", data))


@pytest.mark.parametrize("at", [0, 4, 8])
@pytest.mark.parametrize("names", [("e",), ("e", "f"), ("0",)])
def test_s3_no_empty_tensor_shares_an_offset(tmp_path: Path, at: int, names: tuple[str, ...]) -> None:
    """Our rule, stricter than the reference: no tensor is empty, wherever it stands."""
    header = {"a": entry("F32", [1], 0, 4), **{name: entry("F32", [0], at, at) for name in names}}
    header["b"] = entry("F32", [1], 4, 8)
    with pytest.raises(FormatError, match="is empty"):
        open_safetensors(write(tmp_path / "x.safetensors", safetensors_bytes(header, bytes(8))))


BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F8_E5M2": 8, "F8_E4M3": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip


@pytest.mark.parametrize("dtype", list(BITS))
def test_s4_dtype_shape_and_range_must_agree(tmp_path: Path, dtype: str) -> None:
    for shape, weights in (([], 1), ([4], 4), ([2, 4], 8), ([8, 2, 1], 16)):
        if weights * BITS[dtype] % 8:
            continue  # half bytes: the library refuses them
        right = weights * BITS[dtype] // 8
        for size in (right - 1, right, right + 1, 4):
            data = safetensors_bytes({"t": entry(dtype, shape, 0, size)}, bytes(size))
            path = fuzz.fresh(tmp_path / "x.safetensors", data)
            if size == right:
                assert list(open_safetensors(path)) == ["t"]
            else:
                with pytest.raises(FormatError):
                    open_safetensors(path)


HOSTILE_NAMES = [
    "../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "a/x.safetensors", "C:\\x.safetensors",
    "C:x.safetensors", "..%2fx.safetensors", "x\0.safetensors", "x" * 4096 + ".safetensors", "..", ".", "",
    ".x.safetensors", "x.gguf", "x.safetensors\n", " x.safetensors", "http://h/x.safetensors", "~/x.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_s5_file_names_in_an_index_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(tmp_path / "x.safetensors", safetensors_bytes(ONE, bytes(4)))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"t": name}}))
    for door in (open_safetensors, resolve):
        with pytest.raises(FormatError, match="not a plain file name"):
            door(folder)


def test_s5_links_are_followed_to_regular_files_only(tmp_path: Path) -> None:
    """The hub's cache is made of links; whoever made the folder made them, not the index."""
    good = write(tmp_path / "blob", safetensors_bytes(ONE, bytes(4)))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"t": SINGLE}}))
    os.symlink(good, folder / SINGLE)
    assert list(open_safetensors(folder)) == ["t"]
    for target in ("/dev/zero", "/dev/random", tmp_path):
        (folder / SINGLE).unlink()
        os.symlink(target, folder / SINGLE)
        with pytest.raises(CheckpointError, match=NOT_REGULAR):
            open_safetensors(folder)
    (folder / SINGLE).unlink()
    os.link(good, folder / SINGLE)
    assert list(open_safetensors(folder)) == ["t"]


def test_s6_a_hostile_hub_cannot_name_files_outside(hub: type[test_resolve.Hub], tmp_path: Path) -> None:
    names = ["../../evil.safetensors", "/evil.safetensors", "sub/../../evil.gguf", "..\\evil.gguf", "%2e%2e/evil.gguf"]
    hub.repositories["evil/m"] = dict.fromkeys(names, b"x") | {SINGLE: safetensors_bytes(ONE, bytes(4))}
    location = resolve("evil/m")
    assert [path.name for path in location.files] == [SINGLE]
    assert not [path for path in tmp_path.rglob("*evil*") if path.suffix in (".safetensors", ".gguf")]
    assert not [request for request in hub.requests if "/resolve/" in request and "evil." in request]


@pytest.mark.parametrize(
    "name", ["me/m:../x.gguf", "me/m:/x.gguf", "../m:x.gguf", "me/../m", "me/m:a/b.gguf", "me/.m", "me/m:"]
)
def test_s8_remote_text_never_becomes_a_path(hub: type[test_resolve.Hub], name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        resolve(name)
    assert hub.requests == []


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    "content", [b"PK\3\4" + bytes(60), b"\x1f\x8b\x08" + bytes(60), b"\x80\x02}q\0.", b"", b"GGUF", b"{}"]
)
def test_s9_archives_and_pickles_are_not_models(
    tmp_path: Path, opener: Callable[[Path], object], content: bytes
) -> None:
    with pytest.raises(FormatError):
        opener(write(tmp_path / "model", content))


def test_s9_a_pointer_to_a_model_says_what_to_do(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for opener in OPENERS:
        with pytest.raises(FormatError, match="git lfs pull"):
            opener(write(tmp_path / "model", pointer))


def test_s12_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", SEED.data)

    def tensors() -> Iterator[tuple[str, torch.Tensor, StoredType]]:
        yield "a", torch.ones(32), StoredType.F32
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, "gemma3", {}, tensors())
    assert path.read_bytes() == SEED.data
    assert os.listdir(tmp_path) == ["x.gguf"]


@pytest.mark.parametrize("opener", OPENERS)
def test_s13_only_regular_files_are_opened(tmp_path: Path, opener: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/random"), Path("/dev/tty")):
        with pytest.raises(CheckpointError, match=NOT_REGULAR):
            opener(path)
    for path in (tmp_path / "absent", tmp_path / "a\0b", tmp_path / ("x" * 5000)):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            opener(path)
    with pytest.raises(CheckpointError):
        opener(tmp_path)


def test_the_seeds_hold_every_type() -> None:
    """G14: one seed for every tensor type and every value type."""
    headers = [gguf_header.parse_header(seed.data, len(seed.data)) for seed in fuzz.GGUF_SEEDS]
    assert {tensor.type for header in headers for tensor in header.tensors} == set(GGML_TYPES.values())
    assert len(VALUES) == 12  # the thirteenth is the array
