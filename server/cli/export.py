"""`setback adapters export` and `setback runs export`: folders in Hugging Face's formats. Owns
these commands' arguments. refine/export.py writes the folders.
"""

from pathlib import Path
from typing import Annotated

import typer

from guard.store.adapters import AdapterStore
from server.cli.refine import Number, origin
from server.cli.terminal import ask, fail, reported_errors
from server.settings import load_settings

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")]
License = Annotated[
    str | None, typer.Option(help="The license for the card, as Hugging Face names it: apache-2.0.")
]


def export_adapter(number: Number, folder: Folder, license: License = None) -> None:
    """Write an adapter and its model card, for `PeftModel.from_pretrained` or a Hub repository."""
    from refine import export

    adapter = ask(AdapterStore, lambda store: store.get(number))
    if adapter is None:
        fail(f"there is no adapter {number}; `setback adapters list` lists them", code=1)
    run, lineage = origin(number)
    with reported_errors():
        source = load_settings().adapter_folder.fetch(number, adapter.sha256)
        export.export_adapter(
            source, folder, adapter=adapter, run=run, lineage=lineage, license=license
        )
    typer.echo(f"Adapter {number} is in {folder}.")


def export_run(number: Number, folder: Folder, license: License = None) -> None:
    """Write a run's training data and its card, for `load_dataset` or a Hub repository."""
    from refine import export
    from refine.run import run_folder

    run, _ = origin(number)
    if run is None:
        fail(f"there is no run {number}; `setback runs list` lists them", code=1)
    with reported_errors():
        source = run_folder(load_settings().refine.work_dir, number) / "dataset"
        export.export_dataset(source, folder, run=run, license=license)
    typer.echo(f"The training data of run {number} is in {folder}.")
