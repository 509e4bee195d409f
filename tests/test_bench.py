"""The bench: arithmetic on known seconds, workers that obey, missing peers, and the whole verb on a tiny model."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketgem.bench import chart, job, measure, pipe, protocol, subjects
from pocketgem.bench.measure import Track
from pocketgem.bench.plan import Plan, rows
from pocketgem.bench.reads import read_bandwidth, weight_bytes
from pocketgem.bench.report import lines, rate, ratios, rounded_down, row_report
from pocketgem.bench.subjects import PEERS, Subject, chosen, synthetic_layout, with_weights
from pocketgem.checkpoint.export import export_gguf
from pocketgem.checkpoint.load import Checkpoint, open_checkpoint
from pocketgem.checkpoint.resolve import resolve
from pocketgem.checkpoint.synth import write_synthetic
from pocketgem.checkpoint.types import StoredType
from pocketgem.cli import main
from pocketgem.errors import InputError, RunError, UnsupportedError
from tests.cli_models import save_model, vocabulary
from tests.test_synth import small

TINY = Plan(prefill=(12,), decode=3, depth=(5,), sequences=(1, 3), runs=2, threads=1)
SIZES = ["--threads", "1", "--prefill", "12", "--decode", "3", "--depth", "5", "--sequences", "1,3", "--runs", "2"]

# A runtime whose times are known: a token takes 0.5 s to read, a step of n sequences n seconds.
FAKE = """
from pocketgem.bench.protocol import main
class Fake:
    def facts(self):
        return {"version": "fake 1"}
    def prefill(self, prompt):
        print("noise that is no answer")
        return 0.5 * len(prompt)
    def decode(self, prompts, steps):
        if len(prompts) > 1:
            raise NotImplementedError("one conversation only")
        return [1.0 * len(prompts)] * steps
main(lambda options: Fake())
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    checkpoint = open_checkpoint(resolve(save_model(folder / "hf")))
    export_gguf(checkpoint, folder / "tiny.gguf", StoredType.BF16, vocabulary=vocabulary())
    return folder / "tiny.gguf"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about time: no pauses, and no half gigabyte to read."""
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(job, "read_bandwidth", lambda threads: 10.0)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A peer called llama.cpp whose worker is the fake runtime."""
    (tmp_path / "fake_runtime.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peer = Subject("llama.cpp", "fake_runtime")
    monkeypatch.setitem(PEERS, "llama.cpp", peer)
    return peer


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(path))


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def test_a_rate_is_tokens_over_the_median_step() -> None:
    prefill, decode, _, three = rows(TINY)
    assert rate(prefill, [4.0]) == 3
    assert rate(decode, [0.5, 0.25, 9.0]) == 2
    assert rate(three, [0.5, 0.25, 9.0]) == 6


def test_ratios_pair_values_of_the_same_run() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0], more_is_better=True) == [2, 3]
    assert ratios([2.0, 3.0], [1.0, 9.0], more_is_better=False) == [0.5, 3]


@pytest.mark.parametrize(("value", "shown"), [(1.4999, 1.49), (1.5, 1.5), (1.15, 1.15), (0.999, 0.99), (12.0, 12.0)])
def test_a_ratio_is_never_rounded_up(value: float, shown: float) -> None:
    assert rounded_down(value) == shown


def test_a_report_holds_medians_spreads_ratios_and_bandwidth() -> None:
    ours, peer = Track(peak_MiB={"decode": 100.0}), Track(peak_MiB={"decode": 150.0})
    ours.seconds = {"decode @5": [[0.1], [0.2], [0.4]]}
    peer.seconds = {"decode @5": [[0.3], [0.2], [0.8]]}
    plan = replace(TINY, prefill=(), sequences=())
    found = lines(rows(plan), {"pocketgem": ours, "llama.cpp": peer}, lambda sequences: 2 * 10**9)
    decode = row_report(found[0], ["pocketgem"], bandwidth=40.0)
    assert decode["depth"] == 5
    assert decode["decode_tokens_per_s"] == 5
    assert decode["spread"] == [2.5, 10]
    assert decode["GB_per_s"] == 10
    assert decode["share_of_bandwidth"] == 0.25
    other = decode["peers"]
    assert isinstance(other, dict)
    assert other["llama.cpp"]["ratio"] == 2  # of 3, 1 and 2: not 5 / 3.33, the ratio of the medians
    assert other["llama.cpp"]["ratio_spread"] == [1, 3]
    memory = row_report(found[-1], [], bandwidth=40.0)
    assert memory["peak_memory_MiB"] == 100
    peer_memory = {"peak_memory_MiB": 150, "spread": [150, 150], "ratio": 1.5, "ratio_spread": [1.5, 1.5]}
    assert memory["peers"] == {"llama.cpp": peer_memory}


def test_rows_of_many_sequences_count_weights_once_a_step() -> None:
    track = Track(seconds={"3 sequences": [[0.5]]})
    plan = replace(TINY, prefill=(), depth=(), sequences=(3,))
    (line, *_) = lines(rows(plan), {"pocketgem": track}, lambda sequences: sequences * 10**9)
    report = row_report(line, ["pocketgem"], bandwidth=12.0)
    assert report["decode_tokens_per_s"] == 6
    assert report["GB_per_s"] == 6  # two steps a second, of 3 GB


def test_one_row_of_a_table_is_read_and_few_experts(tmp_path: Path) -> None:
    e2b, moe = small("gemma-4-E2B"), small("gemma-4-26B-A4B")
    for config, name in ((e2b, "a"), (moe, "b")):
        write_synthetic(config, "gemma-4-E2B", tmp_path / f"{name}.gguf")
    first, second = opened(tmp_path / "a.gguf"), opened(tmp_path / "b.gguf")
    whole = sum(tensor.nbytes for tensor in first.tensors.values())
    table = first.tensors["embed_tokens_per_layer.weight"]
    assert weight_bytes(first) == whole - table.nbytes + table.nbytes // table.shape[0]
    assert weight_bytes(first, rows=3) == whole - table.nbytes + 3 * table.nbytes // table.shape[0]
    experts = sum(tensor.nbytes for name, tensor in second.tensors.items() if ".experts." in name)
    rest = sum(tensor.nbytes for tensor in second.tensors.values()) - experts
    assert weight_bytes(second) == rest + experts // 2  # two of four
    assert weight_bytes(second, rows=2) == rest + experts * 3 // 4


def test_reading_memory_takes_time() -> None:
    assert 0.1 < read_bandwidth(1, size=1 << 20) < 10_000


# ---- the pipe ------------------------------------------------------------------------------------------------------


class Known:
    """Answers with what it was asked."""

    def facts(self) -> dict[str, object]:
        return {"version": "known"}

    def prefill(self, prompt: list[int]) -> float:
        return float(len(prompt))

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        if len({*map(tuple, prompts)}) != len(prompts):
            raise ValueError("two prompts\nare the same")
        return [float(len(prompts))] * steps


def served(load: Any, *commands: dict[str, int], vocabulary: int = 300) -> list[dict[str, Any]]:
    answers = io.StringIO()
    text = "".join(json.dumps(command) + "\n" for command in commands)
    protocol.serve(load, {"vocabulary": vocabulary}, io.StringIO(text), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_worker_answers_each_command_with_seconds_and_memory() -> None:
    hello, prefill, decode = served(
        lambda options: Known(), {"prefill": 7, "seed": 0}, {"sequences": 2, "decode": 3, "depth": 9, "seed": 1}
    )
    assert hello["facts"] == {"version": "known"}
    assert prefill["seconds"] == [7]
    assert decode["seconds"] == [2, 2, 2]
    assert decode["memory"].keys() == ({"peak_MiB", "anonymous_MiB"} if Path("/proc").exists() else set())


def test_a_workers_failure_is_its_last_answer() -> None:
    command = {"sequences": 2, "decode": 1, "depth": 0, "seed": 1}  # both prompts are empty
    *_, last = served(lambda options: Known(), command, command)
    assert last["error"] == "ValueError: two prompts are the same"
    (only,) = served(lambda options: 1 / 0, command)
    assert only["error"].startswith("ZeroDivisionError")


def test_the_same_seed_gives_every_subject_the_same_prompt() -> None:
    assert protocol.prompt_ids(4, 50, 1000) == protocol.prompt_ids(4, 50, 1000)
    assert protocol.prompt_ids(4, 50, 1000) != protocol.prompt_ids(5, 50, 1000)
    assert all(300 <= id < 1000 for id in protocol.prompt_ids(4, 50, 1000))
    assert all(0 <= id < 100 for id in protocol.prompt_ids(4, 50, 100))


def test_a_worker_that_dies_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies.py").write_text("import sys; sys.exit('nothing works here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunError, match="code 1: nothing works here"), pipe.Worker(Subject("x", "dies"), {}) as worker:
        worker.ready()


def test_an_interrupted_parent_leaves_no_worker(fake: Subject) -> None:
    def interrupted() -> None:
        with pipe.Worker(fake, {"vocabulary": 9}) as worker:
            held.append(worker)
            worker.ready()
            raise KeyboardInterrupt

    held: list[pipe.Worker] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert held[0]._process.poll() is not None


# ---- peers ---------------------------------------------------------------------------------------------------------


def test_a_missing_peer_ends_with_the_line_that_installs_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PEERS, "llama.cpp", replace(PEERS["llama.cpp"], needs=("no_such_module",)))
    assert main(["bench", str(tiny), "--vs", "llama.cpp"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert sys.executable in message
    assert "pip install llama-cpp-python" in message
    assert "-DGGML_AVX512_VNNI=ON" in message


def test_transformers_is_refused_a_file_it_cannot_read(tmp_path: Path) -> None:
    write_synthetic(small("gemma-4-E2B"), "gemma-4-E2B", tmp_path / "x.gguf")
    checkpoint = opened(tmp_path / "x.gguf")
    peer = PEERS["transformers"]
    real = replace(checkpoint, metadata={**checkpoint.metadata, "general.name": "Gemma 4 E2B"})
    with pytest.raises(UnsupportedError, match="transformers reads no gemma4 from GGUF"):
        with_weights(peer, real)
    with pytest.raises(UnsupportedError, match="shapes are not those of gemma-4-E2B"):
        with_weights(peer, checkpoint)
    other = replace(checkpoint, metadata={"general.name": "synthetic mine (random weights)"})
    with pytest.raises(UnsupportedError, match="transformers has no layout called 'mine'"):
        with_weights(peer, other)
    assert (synthetic_layout(checkpoint), synthetic_layout(real)) == ("gemma-4-E2B", None)


def test_transformers_takes_its_weights_from_where_it_can(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = PEERS["transformers"]
    assert with_weights(peer, opened(tiny)).options == {"source": "gguf"}
    assert with_weights(peer, opened(tiny.parent / "hf")).options == {"source": "folder"}
    synthetic = replace(opened(tiny), metadata={"general.name": "synthetic gemma-4-e2b (random weights)"})
    monkeypatch.setattr(subjects, "from_hf", lambda config, where: synthetic.config)  # the file's shapes are released
    options = with_weights(peer, synthetic).options
    assert options["source"] == "config"
    assert isinstance(config := options["config"], dict)
    assert (config["model_type"], config["num_hidden_layers"]) == ("gemma4_text", 35)
    with pytest.raises(UnsupportedError, match=r"llama\.cpp reads GGUF files only"):
        with_weights(PEERS["llama.cpp"], opened(tiny.parent / "hf"))


@pytest.mark.parametrize(
    ("names", "message"),
    [(["vllm"], "no peer is called 'vllm'; there are: llama.cpp"), (["openvino-genai"], "needs a model folder of its")],
)
def test_peers_that_cannot_be_asked_are_named(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(names, {}, {})


def test_an_interpreter_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="--peer-python /nowhere/python: cannot be run"):
        chosen(["llama.cpp"], {"llama.cpp": "/nowhere/python"}, {})


@pytest.mark.parametrize("kept", [True, False])
def test_whether_packed_weights_are_kept_reaches_our_worker(tiny: Path, kept: bool) -> None:
    (mine,) = job.prepare(str(tiny), TINY, keep_packed=kept).subjects
    assert mine.options == {"keep_packed": kept, "ple": "auto", "device": "cpu", "expert_memory": None}


# ---- the whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one_at_a_time", "runs"), [(False, 2), (True, 1)])
def test_ours_beside_a_peer_with_known_times(tiny: Path, fake: Subject, one_at_a_time: bool, runs: int) -> None:
    heard: list[tuple[int, int]] = []
    plan = replace(TINY, runs=runs)
    prepared = job.prepare(str(tiny), plan, peers=["llama.cpp"], one_at_a_time=one_at_a_time)
    report: dict[str, Any] = job.run(prepared, lambda done, total: heard.append((done, total)))
    assert report["one_at_a_time"] is one_at_a_time
    assert report["subjects"]["llama.cpp"]["version"] == "fake 1"
    assert report["subjects"]["llama.cpp"]["not_measured"] == {"3 sequences": "one conversation only"}
    found = {row["row"]: row for row in report["rows"]}
    assert found["prefill 12"]["peers"]["llama.cpp"]["prefill_tokens_per_s"] == 2
    assert found["decode @5"]["peers"]["llama.cpp"]["decode_tokens_per_s"] == 1
    assert found["decode @5"]["peers"]["llama.cpp"]["ratio"] > 1
    assert found["decode @5"]["GB_per_s"] >= 0
    assert found["3 sequences"]["decode_tokens_per_s"] > 0
    assert found["3 sequences"]["peers"]["llama.cpp"] == {"decode_tokens_per_s": None}
    assert heard[-1][0] == heard[-1][1]
    assert len(heard) == runs * 2 * 4  # of two subjects and four rows


def test_the_verb_prints_a_table_and_a_last_line_of_json(
    tiny: Path, fake: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tiny), *SIZES, "--vs", "llama.cpp", "--sequences", "", "--runs", "1"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert table[0].startswith("tiny.gguf (")
    assert table[1].split() == ["pocketgem", "llama.cpp", "ratio", "GB/s", "share"]
    assert [line.split(",")[0] for line in table[2:4]] == ["prefill 12", "first token after 12"]
    assert json.loads(last)["runs"] == 1


def test_json_alone_has_the_keys_of_each_row(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny), *SIZES, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert (report["threads"], report["runs"], report["decode_steps"]) == (1, 2, 3)
    keys = [{*row} - {"row", "spread", "GB_per_s", "share_of_bandwidth"} for row in report["rows"]]
    assert keys[:5] == [
        {"prompt_tokens", "prefill_tokens_per_s"},
        {"prompt_tokens", "first_token_s"},
        {"depth", "decode_tokens_per_s"},
        {"sequences", "decode_tokens_per_s"},
        {"sequences", "decode_tokens_per_s"},
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prefill", "12,x"], "--prefill takes numbers from 1 to 1048576"),
        (["--sequences", "65"], "--sequences takes numbers from 1 to 64"),
        (["--depth", "0"], "--depth takes numbers"),
        (["--depth", "40000"], "these lengths need 40066 tokens, but the model's context holds 32768"),
        (["--peer-python", "llama.cpp=x"], "--peer-python takes PEER=PATH with a peer of --vs"),
        (["--chart", "x.pdf"], "must end in .svg or .png"),
        (["--chart", "nowhere/x.svg"], "there is no folder nowhere"),
    ],
)
def test_wrong_options_end_before_anything_is_loaded(
    tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", str(tiny), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_chart_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "pocketgem\[bench\]"'):
        chart.check_chart(tmp_path / "x.svg")


def test_a_chart_shows_each_ratio(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    peer = {"ratio": 1.25, "ratio_spread": [1.0, 1.5]}
    report = {
        "model": "m", "threads": 2, "runs": 3,
        "rows": [{"row": "decode @128", "peers": {"llama.cpp": peer, "other": {}}}, {"row": "load, s", "peers": {}}],
    }  # fmt: skip
    chart.draw_chart(report, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
