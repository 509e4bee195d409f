"""The command line: one file per verb. ``main`` is the console's entry; torch is loaded inside the verbs, not here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated

import typer

import pocketgem
import pocketgem.cli.adapters_use  # its verbs join those of adapters
import pocketgem.cli.rebase  # and these
from pocketgem.cli.adapters import app as adapters_app
from pocketgem.cli.bench import bench_model
from pocketgem.cli.common import HELP, ended, prepare_streams
from pocketgem.cli.export import export_model, verify_files
from pocketgem.cli.info import show_info
from pocketgem.cli.listen import transcribe_file, translate_file
from pocketgem.cli.look import caption_file, detect_in, point_in
from pocketgem.cli.plan import plan_model
from pocketgem.cli.quantize import quantize_file
from pocketgem.cli.run import run_model
from pocketgem.cli.serve import serve_models
from pocketgem.cli.synth import write_synthetic
from pocketgem.cli.tune import tune_model
from pocketgem.cli.tune_sweep import sweep_model

# Plain help and plain errors: they look the same in a pipe, and a fault's traceback is ours to show or to hide.
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
app.command("run", context_settings=HELP)(run_model)
app.command("detect", context_settings=HELP)(detect_in)
app.command("point", context_settings=HELP)(point_in)
app.command("caption", context_settings=HELP)(caption_file)
app.command("transcribe", context_settings=HELP)(transcribe_file)
app.command("translate", context_settings=HELP)(translate_file)
app.command("serve", context_settings=HELP)(serve_models)
app.command("info", context_settings=HELP)(show_info)
app.command("plan", context_settings=HELP)(plan_model)
app.command("quantize", context_settings=HELP)(quantize_file)
app.command("synth", context_settings=HELP)(write_synthetic)
app.command("bench", context_settings=HELP)(bench_model)
app.command("tune", context_settings=HELP)(tune_model)
app.add_typer(adapters_app, name="adapters")
app.command("sweep", context_settings=HELP)(sweep_model)
app.command("export", context_settings=HELP)(export_model)
app.command("verify", context_settings=HELP)(verify_files)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Gemma on the device you own: run a model from its own files, and see what is in them.

    Try: pocketgem run gemma-3-270m "The capital of France is"
    """
    if version:
        print(f"pocketgem {pocketgem.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; every error becomes one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    prepare_streams()
    try:
        command = typer.main.get_command(app)
        with command.make_context("pocketgem", list(arguments), obj=list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        # The command line may be what is wrong, so whether JSON was asked for is read from it bare.
        return ended(error, as_json="--json" in takewhile(lambda argument: argument != "--", arguments))
