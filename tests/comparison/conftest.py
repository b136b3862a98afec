"""Two small models and rows for comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

import gradmm
from compare_tools import MOST, Counting, settings
from gradmm.comparison.compare import Comparison
from gradmm.comparison.config import CompareConfig
from gradmm.loading import save_pretrained
from labelled_rows import rows_of, written
from tiny_models import make_model, make_tokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models with tokens of their own, and rows to train on, to choose by and to test on."""
    folder = tmp_path_factory.mktemp("files")
    save_pretrained(make_model("gpt2"), make_tokenizer(), folder / "tiny")
    others = ("A great, happy film.", "What a dull, sad story!")
    save_pretrained(make_model("llama"), make_tokenizer(True, others, 100), folder / "student")
    for name, each in (("film", 8), ("story", 5), ("end", 6)):
        written(folder / f"{name}.jsonl", rows_of(name, each))
    return folder


@pytest.fixture(scope="module")
def everything(files: Path) -> CompareConfig:
    """Nearly all methods, at two budgets, for two seeds."""
    return settings(files, methods=MOST, budgets=[2, 3], path=True)


@pytest.fixture(scope="module")
def whole(everything: CompareConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Counting]:
    reporter = Counting()
    return gradmm.compare(everything, tmp_path_factory.mktemp("whole") / "run", reporter), reporter
