"""The form of writing: found from the target, one for all classes, kept by all that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradmm import forming
from gradmm.blocks import BlockRunner
from gradmm.data.sources import load_data
from gradmm.pipeline import generate
from gradmm.search import Search
from gradmm.solvers.forms import Form
from run_tools import DATA_FILES, FORMS, Interrupting, data_bytes, figures, files, search_config, tiny_data

SOME = ["as_written", "lowercase+no_punctuation", "lowercase+spaced_punctuation"]


SENTENCES = {"min_tokens": 6, "max_tokens": 24}


def make(lm: Any, data: Any, *given: Any, lengths: Any = None, **pool: Any) -> Any:
    pool = {"texts_per_text": 12} | pool
    space = {"public_texts": 3 * pool["texts_per_text"]}  # all that is written
    changes = {"pool": pool, "space": space} | ({"lengths": lengths} if lengths else {})
    return generate(lm, "sst2", data, search_config(**changes), *given)


@pytest.mark.parametrize("name", SOME)
def test_the_form_of_the_real_rows_is_found(demo_lm: Any, name: str) -> None:
    rows = load_data("demo")
    formed = [{"text": Form(name)(text), "label": c} for c in (0, 1) for text in rows.texts_of(c)[:20]]
    result = make(demo_lm, formed, lengths=SENTENCES, forms=SOME, texts_per_text=8)
    form = result.metrics["form"]
    assert form["name"] == name
    assert min(form["objectives"], key=form["objectives"].get) == name and set(form["objectives"]) == set(SOME)
    assert all(Form(name)(text) == text for text in result.dataset["text"])  # refined ones among them
    assert ("formed" in result.metrics["steps"]) == (name != "as_written")


def test_a_candidate_that_is_cut_has_its_form(demo_lm: Any, demo_task: Any) -> None:
    """In its form it has more tokens than are allowed, and where it is cut there is a full stop."""
    text, form = "It's bad. It's (so) good, she's told", Form("spaced_punctuation+no_final_punctuation")
    lengths = {"min_tokens": 1, "max_tokens": len(demo_task.text_ids(text))}
    search = Search(BlockRunner(demo_lm, demo_task, search_config(lengths=lengths)))
    assert search.fitted(text, Form()) == text
    assert search.fitted(text, form) == "It 's bad"


def test_a_form_that_is_alone_is_taken_without_a_look(demo_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forming, "_compare", lambda *_: pytest.fail("nothing to compare"))
    result = make(demo_lm, tiny_data(), forms=["lowercase+no_punctuation"])
    assert result.metrics["form"] == {"name": "lowercase+no_punctuation", "objectives": {}}
    assert all(text == text.lower() and "." not in text for text in result.dataset["text"])


def test_a_form_that_texts_cannot_take_is_not_chosen(tiny_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that are all alike in a form are too few to select from."""
    monkeypatch.setattr("gradmm.solvers.forms.STEPS", {"lowercase": lambda text: "The same."})
    result = make(tiny_lm("gpt2"), tiny_data(), forms=["lowercase", "as_written"])
    assert result.metrics["form"]["name"] == "as_written"
    assert result.metrics["form"]["objectives"]["lowercase"] is None


def test_wherever_a_run_is_interrupted_it_takes_the_same_form(
    tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("gpt2")
    make(lm, tiny_data(), tmp_path / "whole")
    advances = 4 + len(FORMS) + 1  # behind pool, target and form
    with pytest.raises(KeyboardInterrupt):
        make(lm, tiny_data(), tmp_path / "run", Interrupting(advances))
    assert not set(DATA_FILES) & files(tmp_path / "run")
    monkeypatch.setattr(forming, "_compare", lambda *_: pytest.fail("it is kept"))
    make(lm, tiny_data(), tmp_path / "run")
    assert data_bytes(tmp_path / "run") == data_bytes(tmp_path / "whole")
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
