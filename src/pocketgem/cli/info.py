"""``pocketgem info``: what a checkpoint is made of and can do, and what this computer offers it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import pocketgem.cli.options as o
from pocketgem.cli.common import count_text, one_line, refuse, size_text

if TYPE_CHECKING:
    from pocketgem.info import Info, LayerKind, Layout, Machine, QualityCard, Template, Vocabulary, Weights
    from pocketgem.kernels.cores import Cores

UNWRAPPED = 1000  # columns where no terminal limits them: in a pipe every row is one line

Target = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="As for run; or a config.json, or a released layout such as gemma-4-E2B."),
]
Cpu = Annotated[bool, typer.Option("--cpu", help="This computer: processor, cores, threads, kernels, and why.")]


def show_info(model: Target = None, cpu: Cpu = False, offline: o.Offline = False, as_json: o.Json = False) -> None:
    """Show what a model is made of and can do, or this computer.

    Layout, weights by group, cache, tokenizer and template; no weights are read. With --cpu, MODEL may be left out.
    """
    if model is None and not cpu:
        refuse("Give a MODEL, or --cpu for this computer.")
    from pocketgem.info import describe_machine, inspect

    found = None if model is None else inspect(model, offline=offline)
    machine = describe_machine()
    if as_json:
        print(json.dumps({**({} if found is None else asdict(found)), "machine": asdict(machine)}))
        return
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = console.width if console.is_terminal else UNWRAPPED
    print(draw(console, found, machine, cpu=cpu))


def draw(console: Console, found: Info | None, machine: Machine, *, cpu: bool) -> str:
    """All sections as text for the console's width, without the spaces that tables leave at line ends."""
    with console.capture() as drawn:
        if found is not None:
            _show_model(console, found, machine)
        if cpu:
            _show_machine(console, machine)
    return "\n".join(line.rstrip() for line in drawn.get().rstrip().splitlines())


def _show_model(console: Console, found: Info, machine: Machine) -> None:
    layout, weights = found.layout, found.weights
    _section(console, found.model, _facts(_files(found)))
    _section(console, "Layout", _facts(_shape(layout)), _kinds(layout.kinds))
    _section(console, "Weights", _groups(weights), _facts(_sums(weights)))
    _section(console, "Keys and values in memory, as bfloat16, by tokens in the context", _cache(layout))
    if found.files.paths:
        _section(console, "Text", _facts({**_vocabulary(found), "template": _template(found.template)}))
    if found.quality is not None:
        _section(console, "Quality, measured when this file was made", _facts(_quality(found.quality)))
    _section(console, "What works", _abilities(found), _facts({"kernels": machine.kernels}))


def _show_machine(console: Console, machine: Machine) -> None:
    facts = {
        "processor": f"{machine.cpu} ({machine.architecture})",
        "features": ", ".join(machine.features) or "none that matter",
        "cores": _cores(machine.cores),
        "threads": f"{machine.threads}: {machine.threads_reason}; --threads sets another number",
        "kernels": machine.kernels,
        **({"matrix unit": machine.amx} if machine.amx else {}),
        "torch": machine.torch,
        "dtype auto": f"{'block types of GGUF stay packed, else ' if machine.kernel_set else ''}{machine.dtype}",
    }
    _section(console, "This computer", _facts(facts))
    _section(console, "Sets of kernels, best first (POCKETGEM_KERNELS names one, or torch for none)", _sets(machine))


def _cores(cores: Cores) -> str:
    """Physical first; what the system does not tell is left out."""
    kinds = f" ({cores.performance} performance, {cores.efficiency} efficiency)" if cores.efficiency else ""
    physical = "" if cores.physical is None else f"{cores.physical} physical{kinds}, "
    allowed = "" if cores.allowed in (None, cores.logical) else f", {cores.allowed} of them for this process"
    quota = "" if cores.quota is None else f", time of {cores.quota:g} granted by the container"
    return f"{physical}{cores.logical} logical{allowed}{quota}"


def _sets(machine: Machine) -> Table:
    rows = [
        ("in use" if status.name == machine.kernel_set else "usable" if status.usable else "no", status)
        for status in machine.sets
    ]
    table = _plain_table()
    for state, status in rows:
        table.add_row(status.name, state, status.reason)
    return table


# ---- what stands in the sections -----------------------------------------------------------------------------------


def _files(found: Info) -> dict[str, str]:
    files = found.files
    size = f", {size_text(files.size)}" if files.size else ""
    number = f" in {len(files.paths)} files" if len(files.paths) > 1 else ""
    return {"format": f"{files.format}{size}{number}", **({"path": files.paths[0]} if files.paths else {})}


def _shape(layout: Layout) -> dict[str, str]:
    facts = {
        "family": f"{layout.family}, {layout.num_layers} layers, width {layout.hidden_size:,}",
        "vocabulary": f"{layout.vocab_size:,} tokens, head {'tied' if layout.tied_head else 'of its own'}",
        "context": f"{layout.context:,} tokens",
    }
    if layout.per_layer is not None:
        facts["per layer"] = f"embeddings of {layout.per_layer.hidden_size}, a table of {layout.per_layer.vocab_size:,}"
    if layout.experts is not None:
        experts = layout.experts
        facts["experts"] = f"{experts.num_experts}, {experts.top_k} a token, MLP {experts.intermediate_size:,} each"
    if layout.altup is not None:
        facts["altup"] = f"{layout.altup.num_inputs} streams, LAuReL rank {layout.altup.laurel_rank}"
    if layout.logit_softcapping is not None:
        facts["softcap"] = f"logits within {layout.logit_softcapping:g}"
    small = "; small letters read another layer's keys" if any(kind.reads for kind in layout.kinds) else ""
    return {**facts, "pattern": layout.pattern, "": f"S sliding, F full{small}"}


def _kinds(kinds: Iterable[LayerKind]) -> Table:
    table = _table("layers", "kind", "window", "heads", "K/V", "size", "MLP", "rope", "keys", text=("kind", "keys"))
    for kind in kinds:
        table.add_row(
            str(kind.count),
            kind.kind,
            "all" if kind.window is None else f"{kind.window:,}",
            str(kind.num_heads),
            str(kind.num_kv_heads),
            str(kind.head_dim),
            f"{kind.intermediate_size:,}",
            _rope(kind),
            _keys(kind),
        )
    return table


def _rope(kind: LayerKind) -> str:
    """Base, how much of a head turns if not all, how far positions are stretched."""
    base = f"{kind.rope_theta / 1e6:g}M" if kind.rope_theta >= 1e6 else f"{kind.rope_theta / 1e3:g}k"
    part = "" if kind.rotated == kind.head_dim else f", {kind.rotated} of {kind.head_dim}"
    return base + part + ("" if kind.rope_factor == 1 else f", 1/{kind.rope_factor:g}")


def _keys(kind: LayerKind) -> str:
    if kind.reads:
        return "of layer " + ", ".join(map(str, kind.reads))
    return "own, v = k" if kind.value_is_key else "own"


def _groups(weights: Weights) -> Table:
    stored = any(group.stored is not None for group in weights.groups)
    table = _table("part", "parameters", "bytes", "stored as", text=("part", "stored as"))
    for group in weights.groups:
        size = count_text(group.parameters) if group.parameters else "-"
        absent = "not in this file" if stored and not group.stored else ", ".join(group.types)
        planned = group.parameters * 2 if group.stored is None else group.stored
        table.add_row(group.name.replace("_", " "), size, size_text(planned), absent or "as bfloat16")
    table.add_row("all", count_text(weights.total), size_text(weights.stored), "" if stored else "as bfloat16")
    return table


def _sums(weights: Weights) -> dict[str, str]:
    facts = {
        "effective": f"{count_text(weights.effective)} must lie in fast memory",
        "active": f"{count_text(weights.active)} are read for each token",
    }
    if weights.types:
        each = (f"{count} {name} ({size_text(size)})" for name, (count, size) in weights.types.items())
        facts["tensors"] = ", ".join(each)
    if weights.not_counted:
        facts["not counted"] = ", ".join(weights.not_counted)
    return facts


def _cache(layout: Layout) -> Table:
    spans = [*layout.cache[0].at]
    table = _table("kind", "layers", "a token", *(f"{span:,}" for span in spans), text=("kind",))
    for cost in layout.cache:
        kind = cost.kind if cost.window is None else f"{cost.kind}, to {cost.window:,}"
        table.add_row(kind, str(cost.layers), size_text(cost.bytes_per_token), *map(size_text, cost.at.values()))
    sums = [sum(cost.at[span] for cost in layout.cache) for span in spans]
    each = sum(cost.bytes_per_token for cost in layout.cache)
    table.add_row("all", str(sum(cost.layers for cost in layout.cache)), size_text(each), *map(size_text, sums))
    return table


def _vocabulary(found: Info) -> dict[str, str]:
    words: Vocabulary | None = found.vocabulary
    if words is None:
        return {"tokenizer": found.vocabulary_fault or "none"}
    return {
        "tokenizer": f"{words.kind}, {words.size:,} tokens",
        "begin, end": f"{_tokens(words.bos)}, {_tokens(words.eos)}",
        "stops at": _tokens(words.stops),
    }


def _tokens(tokens: Mapping[int, str]) -> str:
    return ", ".join(f"{text} {id}" for id, text in tokens.items()) or "none"


def _template(template: Template | None) -> str:
    if template is None:
        return "none"
    uses = [name for name, used in (("tools", template.tools), ("thinking", template.thinking)) if used]
    fault = f", cannot be read: {template.fault}" if template.fault else ""
    asks = f", asks for {' and '.join(uses)}" if uses else ""
    return f"{template.characters:,} characters, sha256 {template.sha256[:12]}{asks}{fault}"


def _quality(card: QualityCard) -> dict[str, str]:
    kept = "within the limits" if card.within_limits else "OVER the limits, kept all the same"
    return {
        "format": f"{card.format}, from {card.source}: {kept}",
        "divergence": f"mean {card.kl_mean:.5f} nats, 99 % {card.kl_p99:.4f}, most {card.kl_max:.3f}",
        "best token": f"the same at {card.same_top1:.1%} of {card.tokens:,} tokens ({card.text})",
        "perplexity": f"{card.perplexity:.3f}, of the source {card.source_perplexity:.3f}",
        "compared": card.compared,
    }


def _abilities(found: Info) -> Table:
    table = _plain_table()
    for ability in found.abilities:
        table.add_row(ability.name, "yes" if ability.works else "no", one_line(ability.reason))
    return table


# ---- how it is drawn -----------------------------------------------------------------------------------------------


def _section(console: Console, title: str, *tables: Table) -> None:
    """A title and what belongs to it, each part with an empty line after it."""
    console.print(Text(one_line(title), style="bold"), soft_wrap=True)
    for table in tables:
        console.print(Padding(table, (0, 0, 1, 2), expand=False))


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim", min_width=10)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(one_line(value)))
    return table


def _plain_table() -> Table:
    """Three columns of text without a header."""
    table = _table("", "", "", text=("",))
    table.show_header = False
    return table


def _table(*names: str, text: tuple[str, ...]) -> Table:
    """Columns of numbers, but for those named in ``text``."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="left" if name in text else "right", overflow="fold")
    return table
