"""Fixtures shared by all tests: the packaged model, and small random models of many architectures.

`demo_lm`, `demo_task`   the model that ships in the package, and the sentiment task in its tokens
`tiny_lm(kind)`          a random model of that kind (`tiny_models.KINDS`), cached for the session; `tiny_lm(kind,
                         "eager")` has attention that can be differentiated twice; do not change its weights
`each_tiny_lm`           runs a test once for every kind
`tiny_task(lm, ...)`     a `BoundTask` in a model's tokens
`tiny_folder`            the random model "gpt2" as `save_pretrained` writes it
`own_folder`             puts a test into an empty folder, without wishes for colours
`run(*words)`            the command line, in this process (`command_line.run`)
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a Hugging Face library
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # of the processes that tests start, too: the suite runs one per core

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import command_line
import gradmm
from command_line import Run
from gradmm.data.task import BoundTask, Task
from gradmm.models import LanguageModel
from tiny_models import KINDS, WITH_BOS, TinyLM, make_model, make_tokenizer

torch.set_num_threads(1)
settings.register_profile("gradmm", deadline=None)  # a busy machine is no failure
settings.load_profile("gradmm")

LONGEST = (
    *(
        "test_snippets",
        "test_browser",
        "test_publish",
        "test_compare",
        "test_compare_choices",
        "test_compare_interrupted",
        "test_compare_settings",
        "test_kill",
        "test_train_interrupted",
        "test_train_refused",
        "test_methods",
        "test_one_row",
        "test_private_run",
        "test_spent_once",
        "test_cli",
        "test_trust",
    ),
    *("test_mechanism", "test_pipeline", "test_refinement", "test_faults", "test_search", "test_selection"),
    *("test_shrinking", "test_forming", "test_teaching"),
    *("test_admm", "test_memory", "test_accounting", "test_architectures", "test_rounds", "test_bad_inputs"),
)
"""The files that take longest: they come first, lest one process be left with one of them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # it would put files of few tests, however long, at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def demo_lm() -> LanguageModel:
    return gradmm.load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def demo_task(demo_lm: LanguageModel) -> BoundTask:
    return BoundTask(gradmm.get_task("sst2"), demo_lm.tokenizer, demo_lm.max_length)


@pytest.fixture(scope="session")
def tiny_lm() -> TinyLM:
    """`tiny_lm(kind, attn=None)`: a small random model of one of `tiny_models.KINDS`."""
    return cache(_tiny_lm)


@pytest.fixture(params=KINDS)
def each_tiny_lm(request: pytest.FixtureRequest, tiny_lm: TinyLM) -> LanguageModel:
    return tiny_lm(request.param)


@pytest.fixture(scope="session")
def tiny_task() -> Callable[..., BoundTask]:
    """`tiny_task(lm, verbalisers=..., template=...)`: a task in the tokens of a tiny model."""

    def bind(
        lm: LanguageModel, verbalisers: tuple[str, ...] = (" bad", " great"), template: str = "{text} It was"
    ) -> BoundTask:
        names = tuple(f"class {c}" for c in range(len(verbalisers)))
        return BoundTask(
            Task(label_names=names, verbalisers=verbalisers, template=template), lm.tokenizer, lm.max_length
        )

    return bind


@pytest.fixture(scope="session")
def tiny_folder(tiny_lm: TinyLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    lm = tiny_lm("gpt2")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def run() -> Run:
    return command_line.run


def _tiny_lm(kind: str, attn: str | None = None) -> LanguageModel:
    return LanguageModel(make_model(kind, attn), make_tokenizer(kind in WITH_BOS), f"tiny {kind}")
