"""Search from end to end: what it selects from, how it goes on, and what it says when there is too little."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gradmm.config import GenerateConfig
from gradmm.data.task import Task
from gradmm.errors import ConfigError, DataError, RunFolderError
from gradmm.found import split
from gradmm.pipeline import generate
from gradmm.result import Result
from gradmm.search import Search
from gradmm.solvers.refinement import Refiner
from gradmm.store import RunFolder
from run_tools import DATA_FILES, Interrupting, data_bytes, figures, files, search_config, tiny_data


def make(lm: Any, settings: GenerateConfig, *more: Any) -> Result:
    return generate(lm, "sst2", tiny_data(), settings, *more)


@pytest.fixture(scope="module")
def whole(demo_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    settings = search_config(references=True, refinement={"evaluations": 24, "proposals": 4, "places": 2})
    return make(demo_lm, settings, tmp_path_factory.mktemp("search") / "run")


# ---- what it gives


def test_every_step_brings_the_set_nearer(whole: Result) -> None:
    lm, selected = whole.metrics["references"]["lm"], whole.metrics["steps"]["selected"]
    assert selected["distance"] < lm["distance"]
    for figures_of in whole.metrics["search"]:
        assert figures_of["objective_selected"] <= figures_of["objective_greedy"]
        assert figures_of["objective_refined"] <= figures_of["objective_before_refinement"]
    assert any(own["changes"] for own in whole.metrics["search"])


def test_texts_say_where_they_are_from(whole: Result) -> None:
    assert Counter(whole.dataset["label"]) == {0: 3, 1: 3}
    assert len(set(whole.dataset["text"])) == 6
    assert set(whole.dataset["source"]) <= {"lm", "lm+refined"}
    assert set(whole.dataset["weight"]) == {1.0}
    for row in whole.dataset:
        assert (row["label_score"] is None) == row["source"].endswith("+refined")
        assert row["label_score"] is None or 0 <= row["label_score"] <= 1
    (group,) = whole.metrics["search"]
    before = {text for own in group["selected_texts"] for text in own}
    assert [len(own) for own in group["selected_texts"]] == [3, 3]
    for row in whole.dataset:
        assert (row["text"] in before) == (row["source"] == "lm")


@pytest.mark.parametrize(
    ("classes", "groups"), [("together", [[0, 1, 2]]), ("apart", [[0], [1], [2]])], ids=["together", "apart"]
)
def test_what_is_minimised_is_the_distance_of_all_classes_or_of_each(
    classes: str, groups: list[list[int]], tiny_lm: Any
) -> None:
    """Classes of different sizes; that of what is left is measured text by text, from the texts as they are."""
    words = {"dull": " boring", "fine": " good", "rude": " awful"}
    task = Task(label_names=tuple(words), verbalisers=tuple(words.values()), template="{text} The film is")
    rows = [{"text": f"{name} film number {n}", "label": name} for n in range(3) for name in words]
    settings = search_config(
        texts_per_class=dict(zip(words, (2, 3, 4), strict=True)),
        pool={"texts_per_text": 6, "forms": ["as_written"]},
        distance={"classes": classes},
        selection={"nll_weight": 0},
        refinement={"evaluations": 12, "proposals": 3, "places": 2, "nll_weight": 0},
    )
    result = generate(tiny_lm("llama"), task, rows, settings)
    search, found = result.metrics["search"], result.metrics["synthetic"]
    assert [own["classes"] for own in search] == groups
    for key in ("candidates", "carry_their_label", "relabelled_in", "relabelled_out", "selected_texts"):
        assert [len(own[key]) for own in search] == list(map(len, groups)), key
    chosen = [texts for own in search for texts in own["selected_texts"]]
    assert list(map(len, chosen)) == [2, 3, 4] == [len(result.texts_of(label)) for label in range(3)]
    for label, texts in enumerate(chosen):
        same = {row["text"] for row in result.dataset if row["label"] == label and row["source"] == "lm"}
        assert same == set(texts) & set(result.texts_of(label))
    matched = [found["distance"]] if classes == "together" else found["class_distances"]
    assert [own["objective_refined"] for own in search] == pytest.approx([math.log(d) for d in matched], abs=1e-4)
    before = result.metrics["steps"]["selected"]
    matched = [before["distance"]] if classes == "together" else before["class_distances"]
    assert [own["objective_selected"] for own in search] == pytest.approx([math.log(d) for d in matched], abs=1e-4)
    labels = {own["label"] for own in result.metrics["figures"]["history"]}
    assert labels <= ({None} if classes == "together" else {0, 1, 2})


def test_texts_of_admm_and_of_the_user_are_candidates_too(tiny_lm: Any, tmp_path: Path) -> None:
    own = [{"text": f"The film is {word}.", "label": label} for label, word in ((0, "bad"), (1, "great"))]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row | {"label": row["label"]}) + "\n" for row in own))
    (tmp_path / "labels.json").write_text('["negative", "positive"]')
    pool = {"texts_per_text": 1, "files": [str(tmp_path / "mine.jsonl")], "forms": ["as_written"]}
    settings = search_config(
        solver="both", texts_per_class=7, pool=pool, refinement={"evaluations": 0}, block_size=4
    )
    result = make(tiny_lm("gpt2"), settings)
    assert {"admm", str(tmp_path / "mine.jsonl")} & set(result.dataset["source"])
    assert min(result.metrics["search"][0]["candidates"]) >= 8
    assert list(result.metrics["steps"]) == ["admm"]  # without refinement the selected set is the result


def test_without_refinement_the_selected_texts_are_the_result(tiny_lm: Any) -> None:
    result = make(tiny_lm("gpt2"), search_config(refinement={"evaluations": 0}))
    assert set(result.dataset["source"]) == {"lm"}
    assert [own["evaluations"] for own in result.metrics["search"]] == [0]


@pytest.mark.parametrize(("classes", "sizes"), [("together", [6]), ("apart", [3, 3])])
def test_weights_are_a_column(classes: str, sizes: list[int], tiny_lm: Any) -> None:
    plain, weighted = (
        make(tiny_lm("gpt2"), search_config(selection={"weights": flag}, distance={"classes": classes}))
        for flag in (False, True)
    )
    assert list(plain.dataset["text"]) == list(weighted.dataset["text"])
    weights = weighted.dataset["weight"][:]
    assert min(weights) >= 0
    assert [sum(own) for own in split(weights, sizes)] == pytest.approx(sizes)
    assert set(weights) != {1.0}


@pytest.mark.parametrize(
    "space",
    [
        {"maps": ["verbaliser"]},
        {"maps": ["whitened"], "centred": False},
        {"maps": [], "loss": "vocabulary"},
        {"maps": ["sketch"], "loss": "vocabulary"},
        {"maps": ["verbaliser", "subspace"]},
    ],
)
def test_every_space_can_be_searched_in(space: dict[str, Any], tiny_lm: Any) -> None:
    settings = search_config(space={"rank": 8, "public_texts": 10} | space, solver="both")
    result = make(tiny_lm("llama"), settings)
    assert result.dataset.num_rows == 6
    assert 0 <= result.metrics["synthetic"]["distance"] < 1


# ---- interruption


@pytest.mark.parametrize(("solver", "every"), [("both", 1), ("search", 3)])  # whose stages "both" has too
def test_wherever_a_search_is_interrupted_it_ends_the_same(
    solver: str, every: int, tiny_lm: Any, tmp_path: Path
) -> None:
    fewer = {"pool": {"texts_per_text": 3}, "refinement": {"evaluations": 2, "proposals": 2, "places": 1}}
    more = fewer | {"label_check": {"relabel": solver == "search"}}
    settings = search_config(solver=solver, texts_per_class=2, **more)
    make(tiny_lm("gpt2"), settings, tmp_path / "whole")
    for advances in count(0, every):
        folder = tmp_path / f"{advances}"
        try:
            make(tiny_lm("gpt2"), settings, folder, Interrupting(advances))
            break
        except KeyboardInterrupt:
            assert not set(DATA_FILES) & files(folder)
            make(tiny_lm("gpt2"), settings, folder)
            assert data_bytes(folder) == data_bytes(tmp_path / "whole")
            assert figures(folder) == figures(tmp_path / "whole")
    assert advances > 8


@pytest.mark.parametrize("name", ["refined-000000", "set-000000"])
def test_what_was_selected_for_all_classes_is_gone_on_with(
    name: str, tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of refinement, and when the set was kept."""
    pool, refinement = {"texts_per_text": 6, "forms": ["as_written"]}, {"places": 1, "proposals": 2}
    settings = search_config(pool=pool, refinement=refinement | {"evaluations": 8})
    whole = make(tiny_lm("gpt2"), settings, tmp_path / "whole")
    (group,) = whole.metrics["search"]
    assert group["classes"] == [0, 1] and group["changes"] > 0
    save = RunFolder.save_state

    def killed(folder: RunFolder, kept: str, *given: Any) -> None:
        save(folder, kept, *given)
        if kept == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tiny_lm("gpt2"), settings, tmp_path / "run")
    assert not set(DATA_FILES) & files(tmp_path / "run")
    begun = list[Any]()
    init = Refiner.init
    monkeypatch.setattr(Refiner, "init", lambda self, texts: begun.append(texts) or init(self, texts))
    if name.startswith("set"):
        monkeypatch.setattr(Search, "select", None)
    make(tiny_lm("gpt2"), settings, tmp_path / "run")
    assert not begun, "it goes on from where it was"
    assert data_bytes(tmp_path / "run") == data_bytes(tmp_path / "whole")
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


# ---- what it refuses, and what it says


def test_too_few_candidates_are_an_error(tiny_lm: Any) -> None:
    settings = search_config(pool={"texts_per_text": 1, "near_duplicate": 0.01}, texts_per_class=20)
    with pytest.raises(DataError) as caught:
        make(tiny_lm("gpt2"), settings)
    told = str(caught.value)
    assert told.startswith("class 'negative' has ")
    assert told.endswith(
        "different candidates for 20 texts; raise pool.texts_per_text or initial.temperature, loosen bans, or "
        "bring texts with pool.files"
    )


def test_a_distance_of_whole_matrices_cannot_be_searched_with(tiny_lm: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tiny_lm("gpt2"), search_config(distance={"name": "tag"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert str(caught.value) == (
        "distance.name 'tag' needs whole matrices, so no search is possible with it; choose one of ['cosine', "
        "'relative_l2'], or solver=admm"
    )


def test_no_class_starves_silently(tiny_lm: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings = search_config(label_check={"min_probability": 1.0}, refinement={"evaluations": 0})
    result = make(tiny_lm("gpt2"), settings)
    assert Counter(result.dataset["label"]) == {0: 3, 1: 3}
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [warning.split(":")[0] for warning in warnings] == ["class negative", "class positive"]
    assert all(warning.endswith("and 3 are needed; the most probable ones are taken") for warning in warnings)


def test_texts_below_the_threshold_are_not_chosen(tiny_lm: Any) -> None:
    free = make(tiny_lm("gpt2"), search_config(refinement={"evaluations": 0}))
    threshold = sorted(free.dataset["label_score"])[2]
    settings = search_config(label_check={"min_probability": threshold}, refinement={"evaluations": 0})
    assert min(make(tiny_lm("gpt2"), settings).dataset["label_score"]) >= threshold


def test_texts_become_candidates_of_their_most_probable_class(
    tiny_lm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With two classes that is the one with a calibrated probability of a half or more."""
    few = {"pool": {"texts_per_text": 8}, "refinement": {"evaluations": 0}}
    plain, moved = (
        make(tiny_lm("gpt2"), search_config(label_check={"relabel": flag}, **few)) for flag in (False, True)
    )
    assert Counter(moved.dataset["label"]) == {0: 3, 1: 3}
    (own,), (before,) = moved.metrics["search"], plain.metrics["search"]
    came, went = own["relabelled_in"], own["relabelled_out"]
    assert all(came) and all(a <= b for a, b in zip(came, reversed(went), strict=True))
    there = [n + a - b for n, a, b in zip(before["candidates"], came, went, strict=True)]
    assert own["candidates"] == own["carry_their_label"] == there
    assert before["relabelled_in"] == before["relabelled_out"] == [0, 0]
    assert min(moved.dataset["label_score"]) >= 0.5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_other_texts_in_a_file_of_candidates_are_another_run(tiny_lm: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    settings = search_config(pool={"texts_per_text": 6, "files": [str(mine)]})
    told = []
    for word in ("dull", "fine"):
        rows = [{"text": f"A {word} film.", "label": name} for name in ("negative", "positive")]
        mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            make(tiny_lm("gpt2"), settings, tmp_path / "run", Interrupting(2))
        except (KeyboardInterrupt, RunFolderError) as error:
            told.append(str(error))
    assert told[0] == ""
    assert f"  files.{mine}: " in told[1]


def test_an_earlier_run_brings_candidates(tiny_lm: Any, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    first = make(tiny_lm("gpt2"), search_config(seed=1), earlier)
    pool = {"texts_per_text": 1, "files": [str(earlier)], "forms": ["as_written"]}
    result = make(tiny_lm("gpt2"), search_config(texts_per_class=5, pool=pool, refinement={"evaluations": 0}))
    brought = [row["text"] for row in result.dataset if row["source"] == str(earlier)]
    assert brought and set(brought) <= set(first.dataset["text"])
