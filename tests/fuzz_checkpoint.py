"""Hand-made GGUF and safetensors files, structure-aware mutations of them, and what must hold for every one.

The tests run a fixed number of cases; ``python -m tests.fuzz_checkpoint --minutes 10`` runs new ones until time is up
and prints the first input that breaks a promise. A case is ``(seed, number)``, so it can be run again.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pocketgem.checkpoint import header as gguf_header
from pocketgem.checkpoint import safetensors as st
from pocketgem.checkpoint.gguf import GGUFFile
from pocketgem.checkpoint.tensor import StoredTensor
from pocketgem.checkpoint.types import GGML_TYPES, tensor_bytes
from pocketgem.errors import PocketgemError

ABSURD = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
SLACK = 1 << 18  # bytes a parser may allocate beyond the size of a small input
STRING, ARRAY = 8, 9
VALUES: dict[int, tuple[str, object]] = {  # GGUF value type -> struct code, an example
    0: ("B", 200), 1: ("b", -3), 2: ("H", 60000), 3: ("h", -300), 4: ("I", 7), 5: ("i", -7), 6: ("f", 0.5),
    7: ("?", True), STRING: ("", "gem 💎"), 10: ("Q", 1 << 40), 11: ("q", -(1 << 40)), 12: ("d", 1e-9),
}  # fmt: skip


# --- GGUF by hand


@dataclass
class Built:
    """A file, and where its numbers are: (offset, width in bytes, what it is)."""

    data: bytearray = field(default_factory=bytearray)
    fields: list[tuple[int, int, str]] = field(default_factory=list)

    def number(self, value: int, width: int, what: str) -> None:
        self.fields.append((len(self.data), width, what))
        self.data += (value % (1 << 8 * width)).to_bytes(width, "little")

    def text(self, value: str | bytes, what: str) -> None:
        raw = value if isinstance(value, bytes) else value.encode()
        self.number(len(raw), 8, f"{what} length")
        self.data += raw

    def value(self, kind: int, value: object, what: str) -> None:
        if kind == STRING:
            assert isinstance(value, str | bytes)
            self.text(value, what)
        elif kind == ARRAY:
            assert isinstance(value, tuple)
            element, items = value
            self.number(element, 4, "element type")
            self.number(len(items), 8, "array count")
            for item in items:
                self.value(element, item, "element")
        else:
            self.data += struct.pack("<" + VALUES[kind][0], value)

    def pad(self, alignment: int) -> None:
        self.data += bytes(-len(self.data) % alignment)


Key = tuple[str, int, object]  # key, value type, value
TensorSpec = tuple[str, tuple[int, ...], int]  # name, dims in GGUF's order, ggml type


def gguf_bytes(keys: Sequence[Key], tensors: Sequence[TensorSpec], version: int = 3, alignment: int = 32) -> Built:
    """A valid file (if its parts are) whose tensor bytes are a pattern."""
    built = Built(bytearray(b"GGUF"))
    built.number(version, 4, "version")
    built.number(len(tensors), 8, "tensor count")
    built.number(len(keys), 8, "key count")
    for key, kind, value in keys:
        built.text(key, "key")
        built.number(kind, 4, "value type")
        built.value(kind, value, "string")
    sizes, offset = [], 0
    for name, dims, kind in tensors:
        built.text(name, "name")
        built.number(len(dims), 4, "dimension count")
        for dim in dims:
            built.number(dim, 8, "dimension")
        built.number(kind, 4, "tensor type")
        built.number(offset, 8, "offset")
        sizes.append(tensor_bytes(dims, GGML_TYPES[kind]))
        offset += -(-sizes[-1] // alignment) * alignment
    for size in sizes:
        built.pad(alignment)
        built.data += (bytes(range(1, 252)) * (size // 251 + 1))[:size]
    built.pad(alignment)
    return built


def array_of(kind: int, count: int = 3) -> tuple[int, list[object]]:
    return kind, [VALUES[kind][1]] * count


ARCHITECTURE: Key = ("general.architecture", STRING, "gemma3")
GGUF_SEEDS: list[Built] = [
    *[gguf_bytes([ARCHITECTURE, ("k", kind, example)], []) for kind, (_, example) in VALUES.items()],
    *[gguf_bytes([ARCHITECTURE, ("k", ARRAY, array_of(kind))], []) for kind in VALUES],
    *[gguf_bytes([ARCHITECTURE], [("t", (kind_type.block_size, 2), kind)]) for kind, kind_type in GGML_TYPES.items()],
    gguf_bytes([ARCHITECTURE], [("a", (3, 5), 0), ("b", (), 1), ("c", (32, 1, 2), 8), ("d", (7,), 24)]),
    gguf_bytes([("general.alignment", 4, 64), ARCHITECTURE], [("a", (5,), 30), ("b", (32,), 2)], alignment=64),
    gguf_bytes([ARCHITECTURE], [("a", (4,), 0)], version=2),
]


def random_gguf(rng: random.Random) -> Built:
    """A new valid file: random keys of random types, random tensors."""
    keys: list[Key] = [ARCHITECTURE]
    for i in range(rng.randrange(4)):
        kind = rng.choice(list(VALUES))
        value = (ARRAY, array_of(kind, rng.randrange(6))) if rng.random() < 0.4 else (kind, VALUES[kind][1])
        keys.append((f"k{i}", *value))
    tensors: list[TensorSpec] = []
    for i in range(rng.randrange(4)):
        kind = rng.choice(list(GGML_TYPES))
        rows = tuple(rng.randrange(1, 4) for _ in range(rng.randrange(3)))
        tensors.append((f"t{i}", (GGML_TYPES[kind].block_size * rng.randrange(1, 3), *rows), kind))
    alignment = rng.choice([8, 32, 64])
    if alignment != 32:
        keys.insert(rng.randrange(len(keys) + 1), ("general.alignment", 4, alignment))
    return gguf_bytes(keys, tensors, rng.choice([2, 3]), alignment)


# --- safetensors by hand


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file; ``header`` is JSON text as bytes, or something to be made JSON; ``length`` may lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str, shape: Sequence[object], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


ST_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "U8": 1, "BOOL": 1}


def random_safetensors(rng: random.Random) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.5 else {}
    start = 0
    for i in range(rng.randrange(5)):
        dtype = rng.choice(list(ST_SIZES))
        shape = [rng.randrange(1, 4) for _ in range(rng.randrange(4))]
        end = start + ST_SIZES[dtype] * int(torch.tensor(shape).prod())
        header[f"t{i}"] = entry(dtype, shape, start, end)
        start = end
    raw = json.dumps(header).encode()
    return safetensors_bytes(raw + b" " * (-len(raw) % 8), bytes(range(256))[:start])


ST_SEEDS: list[bytes] = [
    *[safetensors_bytes({"t": entry(d, [2, 3], 0, 6 * size)}, bytes(6 * size)) for d, size in ST_SIZES.items()],
    safetensors_bytes({"__metadata__": {"a": "b"}, "s": entry("F32", [], 0, 4)}, b"abcd"),
    safetensors_bytes({"b": entry("F32", [1], 2, 6), "a": entry("F16", [1], 0, 2)}, b"abcdef"),
    safetensors_bytes(b"{}   "),
]


# --- mutations


def flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def splice(data: bytes, rng: random.Random) -> bytes:
    """Cut, repeat, insert or move a piece."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    at = rng.randrange(len(data) + 1)
    choice = rng.randrange(5)
    if choice == 0:
        return data[:a] + data[b:]
    if choice == 1:
        return data[:at] + data[a:b] + data[at:]
    if choice == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    return data[:at] if choice == 3 else data + data[a:b]


def renumber(data: bytes, fields: Sequence[tuple[int, int, str]], rng: random.Random) -> bytes:
    """Give one or two of the file's own numbers an absurd, a neighbouring or a random value."""
    out = bytearray(data)
    for offset, width, _ in rng.choices(fields, k=rng.choice([1, 1, 2])):
        old = int.from_bytes(out[offset : offset + width], "little")
        new = rng.choice([*ABSURD, old + 1, old - 1, old * 2, rng.randrange(50), rng.getrandbits(64)])
        out[offset : offset + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(out)


def gguf_case(seed: int, number: int) -> bytes:
    rng = random.Random(f"gguf {seed} {number}")
    built = rng.choice(GGUF_SEEDS) if rng.random() < 0.5 else random_gguf(rng)
    data = bytes(built.data)
    if rng.random() < 0.6:
        data = renumber(data, built.fields, rng)
    for mutate in rng.choices((flip, splice), k=rng.choice([0, 0, 1, 2])):
        data = mutate(data, rng) if data else data
    return data


def edit_json(header: dict[str, object], rng: random.Random) -> bytes:
    """Change a number, a word, a key or the nesting somewhere in a header."""
    raw = json.dumps(header)
    numbers = [str(number) for number in (*ABSURD, -1, 0.5, 1e400, 10**30)]
    words = ["null", "true", "[]", "{}", '"F32"', '"U8"', '"F4"', '"X"', '""', "[" * 50, '{"a":' * 50, *numbers]
    tokens = raw.replace("[", " [ ").replace("]", " ] ").replace(",", " , ").replace(":", " : ").split()
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(tokens))
        tokens[at : at + rng.randrange(3)] = [rng.choice([*words, rng.choice(tokens)])]
    return " ".join(tokens).encode()


def safetensors_case(seed: int, number: int) -> bytes:
    rng = random.Random(f"safetensors {seed} {number}")
    data = rng.choice(ST_SEEDS) if rng.random() < 0.5 else random_safetensors(rng)
    (length,) = struct.unpack_from("<Q", data)
    if rng.random() < 0.5:
        data = safetensors_bytes(edit_json(json.loads(data[8 : 8 + length]), rng), data[8 + length :])
    if rng.random() < 0.2:
        data = renumber(data, [(0, 8, "header length")], rng)
    for mutate in rng.choices((flip, splice), k=rng.choice([0, 1, 1, 2])):
        data = mutate(data, rng) if data else data
    return data


# --- promises


def check_gguf_header(data: bytes) -> gguf_header.Header | None:
    """The header, or None if it was refused in an orderly way; whatever else happens escapes."""
    try:
        header = gguf_header.parse_header(data, len(data))
    except PocketgemError:
        return None
    position = 24
    for tensor in header.tensors:
        assert position <= tensor.start < tensor.end <= len(data), tensor
        assert tensor.start % header.alignment == 0, tensor
        assert tensor.end - tensor.start == tensor_bytes(tensor.shape, tensor.type), tensor
        position = tensor.end
    for value in header.metadata.values():
        kinds = {type(item) for item in (value if isinstance(value, list) else [value])}
        assert len(kinds) < 2, value
        assert kinds <= {int, float, bool, str}, value
    return header


def check_safetensors_header(data: bytes) -> dict[str, st.Entry] | None:
    try:
        entries = st.parse_header(data, len(data))
    except PocketgemError:
        return None
    if entries:
        spans = [(item.start, item.end) for item in entries.values()]
        assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
        assert spans[-1][1] == len(data)
    return entries


def read_whole(tensor: StoredTensor) -> None:
    """Every way of reading an accepted tensor gives numbers of the promised shape."""
    whole = tensor.dense()
    assert whole.shape == tensor.shape
    width = tensor.shape[-1] if tensor.shape else 1
    last = tensor.numel // width - 1
    assert torch.equal(tensor.rows(torch.tensor([last]))[0].nan_to_num(), whole.reshape(-1, width)[last].nan_to_num())


def fresh(path: Path, data: bytes) -> Path:
    """A new file under the same name: cutting and refilling the old one makes some file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def check_gguf_file(data: bytes, folder: Path) -> bool:
    """Through a real file: open it and read every tensor. True if the file was accepted."""
    path = fresh(folder / "case.gguf", data)
    try:
        for tensor in GGUFFile.open(path).tensors.values():
            read_whole(tensor)
    except PocketgemError:
        return False
    return True


def check_safetensors_file(data: bytes, folder: Path) -> bool:
    path = fresh(folder / "case.safetensors", data)
    try:
        for tensor in st.open_safetensors(path).values():
            read_whole(tensor)
    except PocketgemError:
        return False
    return True


def peak_bytes(call: Callable[[bytes], object], data: bytes) -> int:
    """The most Python memory ``call(data)`` held at once."""
    tracemalloc.start()
    try:
        call(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- the long run


def run_until(deadline: float, seed: int, folder: Path) -> int:
    number = 0
    while time.monotonic() < deadline:
        number += 1
        for case, check_header, check_file in (
            (gguf_case, check_gguf_header, check_gguf_file),
            (safetensors_case, check_safetensors_header, check_safetensors_file),
        ):
            data = case(seed, number)
            try:
                check_header(data)
                check_file(data, folder)
            except BaseException:
                print(f"{case.__name__}({seed}, {number}) = bytes.fromhex({data.hex()!r})")
                raise
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = run_until(time.monotonic() + 60 * options.minutes, options.seed, Path(folder))
    print(f"seed {options.seed}: {cases} inputs to each reader, every promise held")


if __name__ == "__main__":
    main()
