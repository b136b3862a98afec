"""What each solver's texts achieve: search, ADMM and the paper's settings beside real rows and LM samples.

All on one model and one set of real rows, in one run; distances are cosine distances of the mean gradient of
the head, log-perplexities in nats per token under the same model, averaged over classes and texts.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

METHODS: dict[str, dict[str, Any]] = {
    "search": {"solver": "search"},
    "search, selection alone": {"solver": "search", "refinement.evaluations": 0},
    "search with ADMM's texts": {"solver": "both"},
    "ADMM": {"solver": "admm"},
    "LM texts alone, best of 8 blocks": {"solver": "admm", "admm.n_outer": 0},
    "paper": {"config": "paper"},
    "paper, 100 outer": {"config": "paper", "admm.n_outer": 100},
}


def table(console: Console, arguments: argparse.Namespace) -> None:
    """Runs the methods and prints them beside the references."""
    from gradmm.config import load_config
    from gradmm.data.sources import DataConfig, load_data
    from gradmm.models import load_model
    from gradmm.pipeline import generate

    lm = load_model("demo")
    data = load_data(arguments.data, DataConfig(max_rows_per_class=arguments.rows))
    counts = f"{min(data.counts())} real rows and {arguments.texts} texts per class"
    out = Table(title=f"{arguments.data}: {counts}")
    for column in ("set", "distance", "log-perplexity", "distinct pairs", "retokenised", "minutes"):
        out.add_column(column, justify="left" if column == "set" else "right")
    referenced = False
    for name in arguments.methods or ["search", "search, selection alone", "ADMM", "paper"]:
        given = dict(METHODS[name])
        config = load_config(given.pop("config", None), given | {"texts_per_class": arguments.texts})
        settings = config.generate_config().model_copy(update={"references": not referenced})
        began = time.monotonic()
        metrics = generate(lm, arguments.task, data, settings).metrics
        if not referenced:
            for reference, row in metrics["references"].items():
                _add(out, reference, row, "")
            referenced = True
        _add(out, name, metrics["synthetic"], f"{(time.monotonic() - began) / 60:.1f}")
    console.print(out)


def _add(out: Table, name: str, row: dict[str, Any], minutes: str) -> None:
    figures = (f"{row['distance']:.4f}", f"{row['log_perplexity']:.2f}", f"{row['distinct_2']:.2f}")
    out.add_row(name, *figures, str(row.get("retokenised_differently", "")), minutes)
    print(name, *figures, minutes, file=sys.stderr, flush=True)  # a table is printed when all is done, hours later
