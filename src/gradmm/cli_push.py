"""The verb `gradmm push`: a run's data set goes to the Hugging Face Hub. Neither torch nor the client is imported
before it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradmm.errors import printable

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of generate.")]
Repo = Annotated[str, typer.Argument(metavar="REPO", help="Data set repository, as NAMESPACE/NAME.")]
Public = Annotated[
    bool, typer.Option("--public", help="Everybody may see it; without this, a new one is private.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would go up, and send nothing.")]


def push(run: Run, repo: Repo, public: Public = False, dry_run: DryRun = False) -> None:
    """Publish a run's texts on the Hugging Face Hub with a card and a report; real rows and paths stay here."""
    from gradmm.report.publish import push as publish

    done = publish(run, repo, private=not public, dry_run=dry_run)
    for upload in done.uploads:
        typer.echo(f"{printable(upload.name):<24}{len(upload.content):>12,} bytes  {upload.what}")
    seen = "private: you alone see it" if done.private else "public: everybody sees it"
    if dry_run:
        typer.echo(f"Nothing was sent. It would go to {done.url}\n(a new repository would be {seen}).")
    else:
        typer.echo(f"It is at {done.url} ({seen}).")
