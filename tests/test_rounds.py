"""Rounds of writing: what the writer is shown, how often it is tuned, and how an interrupted run goes on."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gradmm import rounds
from gradmm.errors import ConfigError
from gradmm.label_check import LabelCheck
from gradmm.pipeline import generate
from gradmm.search import Search
from gradmm.solvers.forms import Form
from gradmm.training.writer import tune_writer
from run_tools import DATA_FILES, Interrupting, data_bytes, figures, files, search_config, tiny_data


def settings(**changes: Any) -> Any:
    small = {
        "texts_per_class": 2,
        "pool": {"texts_per_text": 6},
        "space": {"public_texts": 4},  # as many as the first round has
        "writer": {"rounds": 3, "share": 0.5, "learning_rate": 1e-2},
        "refinement": {"evaluations": 0},
    }
    return search_config(**small | changes)


def make(lm: Any, *given: Any, **changes: Any) -> Any:
    return generate(lm, "sst2", tiny_data(), settings(**changes), *given)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What every tuning was given."""
    seen: list[list[Any]] = []

    def tune(lm: Any, examples: Any, *given: Any) -> Any:
        seen.append(list(examples))
        return tune_writer(lm, examples, *given)

    monkeypatch.setattr(rounds, "tune_writer", tune)
    monkeypatch.setattr(rounds, "_FEWEST", 1)
    return seen


def test_rounds_share_the_pool_and_the_writer_is_tuned_between_them(
    tiny_lm: Any, lessons: list[list[Any]], tmp_path: Path
) -> None:
    lm = tiny_lm("gpt2")
    before = lm.fingerprint()
    result = make(lm, tmp_path / "run")
    assert lm.fingerprint() == before
    assert max(result.metrics["search"][0]["candidates"]) <= 12  # 2 texts, 6 candidates for each
    first, second = lessons
    assert 1 <= len(first) <= 4 and len(first) <= len(second) <= 8  # of 8 and 16 candidates, half
    assert Counter(result.dataset["label"]) == {0: 2, 1: 2}
    assert set(result.dataset["source"]) <= {"lm", "writer"}
    assert list(result.metrics["seconds"]) == ["pool", "target", "form", "writer", "search", "measure"]


def test_one_round_is_the_lm_alone(tiny_lm: Any, lessons: list[list[Any]]) -> None:
    result = make(tiny_lm("gpt2"), writer={"rounds": 1})
    assert set(result.dataset["source"]) == {"lm"}
    assert not lessons
    assert "writer" not in result.metrics["seconds"]


@pytest.mark.parametrize(("weight", "looks"), [(0.0, 1), (0.1, 3)])
def test_labels_are_looked_at_between_rounds_only_where_they_have_a_say(
    tiny_lm: Any, lessons: list[list[Any]], monkeypatch: pytest.MonkeyPatch, weight: float, looks: int
) -> None:
    checks = list[Any]()
    own = LabelCheck.checked
    monkeypatch.setattr(LabelCheck, "checked", lambda self, pools: checks.append(pools) or own(self, pools))
    make(tiny_lm("gpt2"), selection={"label_weight": weight})
    assert len(lessons) == 2 and len(checks) == looks


def test_the_solver_of_the_paper_writes_no_pool(tiny_lm: Any, lessons: list[list[Any]]) -> None:
    assert set(make(tiny_lm("gpt2"), solver="admm").dataset["source"]) == {"admm"}
    assert not lessons


WHOLE: dict[str, Any] = {"distance": {"classes": "apart"}, "space": {"centred": False, "public_texts": 6}}
"""What the writer's lessons are chosen by, whatever the result is: each class's own gradient, all of it."""
PUBLIC: dict[str, Any] = {"space": {"public_texts": 6}}


def test_the_writer_learns_what_selection_chooses_as_it_would_write_it(
    tiny_lm: Any, lessons: list[list[Any]]
) -> None:
    """With a share that leaves exactly as many as are asked for, the first lesson is a run of one round."""
    lm = tiny_lm("gpt2")
    forms = ["as_written"]
    alone = make(lm, pool={"texts_per_text": 3, "forms": forms}, writer={"rounds": 1}, **WHOLE)
    make(lm, pool={"texts_per_text": 6, "forms": forms}, writer={"rounds": 2, "share": 1 / 3}, **PUBLIC)
    texts = [lm.tokenizer.decode(text) for _, text in lessons[0]]
    assert sorted(text.strip() for text in texts) == sorted(alone.dataset["text"])
    assert all(text.startswith(" ") for text in texts)
    prompts = {lm.tokenizer.decode(prompt) for prompt, _ in lessons[0]}
    assert {prompt[-len("movie review:") :] for prompt in prompts} == {"movie review:"} and len(prompts) == 2


def test_the_writer_learns_texts_as_they_were_before_they_took_their_form(
    tiny_lm: Any, lessons: list[list[Any]]
) -> None:
    """A writer that learned texts without an end would never end one."""
    lm = tiny_lm("gpt2")
    form = Form("lowercase+no_final_punctuation")
    pool = {"texts_per_text": 3, "forms": [form.name]}
    alone = make(lm, pool=pool, writer={"rounds": 1}, **WHOLE)
    make(lm, pool=pool | {"texts_per_text": 6}, writer={"rounds": 2, "share": 1 / 3}, **PUBLIC)
    texts = [lm.tokenizer.decode(text).strip() for _, text in lessons[0]]
    assert sorted(map(form, texts)) == sorted(alone.dataset["text"])
    assert any(form(text) != text for text in texts)
    assert all(form(text) == text for text in alone.dataset["text"])


def test_words_come_as_often_as_in_real_rows(
    tiny_lm: Any, tiny_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of a word that only one class's rows hold rises from round to round, in that class alone."""
    lm = tiny_lm("gpt2")
    rows = [{"text": "a fine and great film", "label": 1}, {"text": "a dull bad film", "label": 0}] * 4
    biases: dict[tuple[int, int], Any] = {}
    own = Search.write_class

    def write(self: Any, prompts: Any, label: int, count: int, purpose: Any, *given: Any) -> Any:
        if purpose[0] == "writer":
            biases[purpose[1], label] = given[2]
        return own(self, prompts, label, count, purpose, *given)

    monkeypatch.setattr(Search, "write_class", write)
    generate(lm, "sst2", rows, settings(refinement={"evaluations": 0}))
    assert list(biases) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    (bad,), (great,) = lm.tokenizer(" bad").input_ids, lm.tokenizer(" great").input_ids
    for number in (1, 2):
        assert biases[number, 0][bad] > 0 >= biases[number, 0][great]
        assert biases[number, 1][great] > 0 >= biases[number, 1][bad]
    for label in (0, 1):
        comma = lm.tokenizer(",").input_ids[0]
        assert biases[1, label][comma] == 0, "punctuation follows from what is around it"
    biases.clear()
    generate(lm, "sst2", rows, settings(writer={"rounds": 2, "unigram_step": 0}))
    assert set(biases.values()) == {None}


def test_wherever_rounds_are_interrupted_they_end_the_same(tiny_lm: Any, tmp_path: Path) -> None:
    make(tiny_lm("gpt2"), tmp_path / "whole")
    for advances in count(0, 2):
        folder = tmp_path / f"{advances}"
        try:
            make(tiny_lm("gpt2"), folder, Interrupting(advances))
            break
        except KeyboardInterrupt:
            assert not set(DATA_FILES) & files(folder)
            make(tiny_lm("gpt2"), folder)
            assert data_bytes(folder) == data_bytes(tmp_path / "whole")
            assert figures(folder) == figures(tmp_path / "whole")
    assert advances > 8


def test_a_round_that_is_written_is_not_tuned_for_again(
    tiny_lm: Any, lessons: list[list[Any]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):  # after pool (2), target (2 classes), form (2), writer (4 chunks)
        make(tiny_lm("gpt2"), tmp_path / "run", Interrupting(11))
    assert len(lessons) == 2
    make(tiny_lm("gpt2"), tmp_path / "run")
    assert len(lessons) == 2


def test_adapters_without_their_library_are_refused_before_the_first_round(
    tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"lora needs the peft library; install gradmm\[lora\]"):
        make(tiny_lm("gpt2"), tmp_path / "run", writer={"rounds": 2, "lora": {}})
    assert not (tmp_path / "run").exists()
    assert make(tiny_lm("gpt2"), writer={"rounds": 1, "lora": {}}).dataset.num_rows, "of one round nobody learns"
