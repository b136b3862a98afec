"""Two small models and rows for comparisons, and the material of their methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gradmm
from compare_tools import MOST, Counting, settings
from gradmm.comparison.compare import Comparison
from gradmm.comparison.config import CompareConfig
from gradmm.comparison.material import Material
from gradmm.comparison.methods import METHODS
from gradmm.config import GenerateConfig
from gradmm.data.presets import get_task
from gradmm.data.sources import LabelledData, load_data
from gradmm.data.task import BoundTask
from gradmm.loading import save_pretrained
from gradmm.models import LanguageModel
from labelled_rows import rows_of, written
from material_tools import COUNT, ROWS, SMALL, MakeMaterial
from store_tools import Kept
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


# ---- of methods


@pytest.fixture(scope="module")
def rows() -> LabelledData:
    return load_data(ROWS)


@pytest.fixture(scope="module")
def lm(tiny_lm: Any) -> LanguageModel:
    found: LanguageModel = tiny_lm("gpt2")
    return found


@pytest.fixture(scope="module")
def make_material(lm: LanguageModel, rows: LabelledData) -> MakeMaterial:
    task = BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length)

    def make(seed: int = 0, budget: int = COUNT, own: LabelledData = rows, **settings: Any) -> Material:
        config = GenerateConfig.model_validate(SMALL | settings)
        return Material(lm, task, own, config, seed, Kept(), budget)

    return make


@pytest.fixture(scope="module")
def material(make_material: MakeMaterial) -> Material:
    """Shared by tests that change nothing."""
    return make_material()


@pytest.fixture(scope="module")
def made(material: Material) -> dict[str, list[list[str]]]:
    return {name: method.make(material, COUNT).texts for name, method in METHODS.items()}
