"""Every architecture with every tokenizer: small random models, real tokenizers, what has to hold of each pair.

Columns: the closed form's largest relative error against autograd, text by text; that of its derivative with
respect to the input embeddings against a double backward pass (or, where a model has none, against differences);
whether the model has a cache that is of use, the largest relative difference of logits with it and without, and
whether projection writes the same texts; a whole run; saving and loading; texts of that run that do not come back
to their tokens.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from gradmm.errors import GradmmError
from gradmm.models import LanguageModel, load_model

COLUMNS = (
    *(
        "kind",
        "tokenizer",
        "closed form",
        "derivative",
        "cache",
        "cached logits",
        "same texts",
        "generates",
        "comes back",
    ),
    "retokenised",
)
_TESTS = Path(__file__).parents[1] / "tests"


def table(console: Console, arguments: argparse.Namespace) -> None:
    """Runs all pairs and prints them."""
    sys.path.append(str(_TESTS))  # models and oracles are those of the test suite
    tiny_models = importlib.import_module("tiny_models")
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    kinds = arguments.kinds or list(tiny_models.KINDS)
    out = Table(title=f"{len(kinds)} architectures")
    for column in COLUMNS:
        out.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for name, tokenizer in _tokenizers(arguments.tokenizers).items():
        for kind in kinds:
            cells = _cells(kind, tokenizer)
            out.add_row(kind, name, *cells)
            print(kind, name, *cells, sep="\t", file=sys.stderr, flush=True)
    console.print(out)


def _tokenizers(folder: str | None) -> dict[str, Any]:
    if folder is None:
        return {"demo": load_model("demo", device="cpu").tokenizer}
    from transformers import AutoTokenizer

    found = sorted(path for path in Path(folder).expanduser().iterdir() if path.is_dir())
    return {path.name: AutoTokenizer.from_pretrained(path, local_files_only=True) for path in found}


def _cells(kind: str, tokenizer: Any) -> list[str]:
    """The row of one pair; an error of the program's is its text."""
    try:
        return _measure(kind, tokenizer)
    except GradmmError as err:
        return [f"{type(err).__name__}: {str(err)[:80]}"] + [""] * (len(COLUMNS) - 3)


def _measure(kind: str, tokenizer: Any) -> list[str]:
    matrix, tiny_models = importlib.import_module("matrix"), importlib.import_module("tiny_models")
    rows = -(-(max(tokenizer.get_vocab().values()) + 1) // 64) * 64
    special = tokenizer.eos_token_id or 0
    lm, eager = (
        LanguageModel(
            tiny_models.make_model(kind, attention, special, vocab_size=rows, pad_token_id=special),
            tokenizer,
            kind,
        )
        for attention in (None, "eager")
    )
    task = matrix.bind(lm)
    if kind in tiny_models.WITHOUT_DOUBLE_BACKWARD:
        found, expected = matrix.directional_derivatives(lm, task)
    else:
        found, expected, _ = matrix.input_gradients(eager, task)
    with tempfile.TemporaryDirectory() as folder:
        back = matrix.comes_back(lm, Path(folder))
    synthetic = matrix.generate(lm).metrics["synthetic"]
    ran = synthetic["texts"] == 6 and 0 <= synthetic["distance"] < 2
    return [
        f"{matrix.closed_form_error(lm, task):.0e}",
        f"{float((found - expected).norm() / torch.linalg.vector_norm(expected)):.0e}",
        _yes(matrix.cache_argument(lm, task) is not None),
        f"{matrix.decoding_error(lm, task):.0e}",
        _yes(matrix.projects_like_recomputation(lm, task)),
        _yes(ran),
        _yes(back),
        str(synthetic["retokenised_differently"]),
    ]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
