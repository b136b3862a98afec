"""Few rows: what is aimed at between them and the LM's own texts, from the settings to what is said of it."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gradmm import shrinking
from gradmm.blocks import BlockRunner
from gradmm.comparison.material import Material
from gradmm.data.sources import load_data
from gradmm.gradients.distances import distance_between
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.target import weighted_sum
from gradmm.labelling import label_log_probs
from gradmm.pipeline import generate
from gradmm.search import Search
from gradmm.shrinking import find_shift
from private_tools import ROWS as PRIVATE_ROWS
from private_tools import StopAt
from private_tools import make as make_private
from run_tools import TINY_ROWS, data_bytes, search_config
from store_tools import Kept

ALONE = {"shrinkage": {"weight": 0}}
AUTO = {"weight": "auto"}
READER = {"reader": "rows", "max_steps": 1, "learning_rate": 1e-3}


def of(demo_lm: Any, demo_task: Any, rows: Any, **changes: Any) -> Material:
    settings = search_config(**{"space": {"public_texts": 6}, "shrinkage": AUTO, **changes})
    return Material(demo_lm, demo_task, load_data(rows), settings, 0, Kept(), 3)


def few(count: int) -> list[tuple[str, int]]:
    """Rows that differ in a number alone, so many of every class."""
    return [
        (f"The film is {word}, story {n}.", c) for c, word in enumerate(("bad", "great")) for n in range(count)
    ]


# ---- when, and how much


def test_rows_that_disagree_ask_for_the_lms_texts(demo_lm: Any, demo_task: Any) -> None:
    own = of(demo_lm, demo_task, TINY_ROWS)
    assert own.aim is own.target, "rows that are all but the same leave no doubt"
    odd = [
        (row["text"] if isinstance(row, dict) else row, c) for c, some in enumerate(demo_rows()) for row in some
    ]
    doubtful = of(demo_lm, demo_task, odd)
    assert doubtful.aim is not doubtful.target
    assert of(demo_lm, demo_task, odd, **ALONE).aim.whole is not None, "centred, and nothing else"
    plain = of(demo_lm, demo_task, odd, **ALONE)
    assert plain.aim is plain.target


def demo_rows(count: int = 3) -> list[list[str]]:
    rows = load_data("demo")
    return [rows.texts_of(label)[:count] for label in range(rows.num_classes)]


def assert_mixed(own: Material, chosen: Any) -> None:
    """Holds what is aimed at against mean gradients of rows and of chosen texts, put together by hand."""
    prior = compute_target(own.lm, own.task, [[texts] for texts in chosen], space=own.target.space)
    for found, mine, other in zip(own.aim.classes, own.target.classes, prior.classes, strict=True):
        expected = weighted_sum([mine, other], [0.6, 0.4])
        assert distance_between(own.config.distance, found, expected, False) < 1e-6
    assert own.aim.whole is own.target.whole


def test_a_number_is_taken_as_it_is_and_the_lm_chooses_among_each_class_own(demo_lm: Any, demo_task: Any) -> None:
    own = of(demo_lm, demo_task, few(4), shrinkage={"weight": 0.4, "share": 0.5})
    search = own.search(3)
    pools = search.pool(own.lm_texts, [], fewest=1)
    chosen = []
    for pool, score_N in zip(pools, search.labels.own(pools), strict=True):
        best = score_N.argsort(descending=True, stable=True)[: round(0.5 * len(pool))]
        chosen.append([pool[i].text for i in best.tolist()])
    assert_mixed(own, chosen)


def test_who_has_learnt_from_the_rows_chooses_among_all(demo_lm: Any, demo_task: Any) -> None:
    own = of(demo_lm, demo_task, few(4), shrinkage={"weight": 0.4, "share": 0.5}, label_check=READER)
    texts = [one.text for pool in own.search(3).pool(own.lm_texts, [], fewest=1) for one in pool]
    reader, count = own.teacher.reader, round(0.5 * len(texts) / 2)
    shares_NC = label_log_probs(reader, demo_task, demo_task.texts_ids(texts)).softmax(1)
    chosen = [[texts[i] for i in shares_NC[:, c].argsort(descending=True)[:count].tolist()] for c in range(2)]
    assert not set(chosen[0]) & set(chosen[1]), "with two classes, a text is surely of one at most"
    assert_mixed(own, chosen)


def test_other_rows_take_other_texts(demo_lm: Any, demo_task: Any) -> None:
    """Rows whose labels are exchanged do; and the LM stays as it was itself."""
    before = {name: value.clone() for name, value in demo_lm.model.state_dict().items()}
    texts = []
    for rows in (few(6), [(text, 1 - label) for text, label in few(6)]):
        reader = READER | {"max_steps": 12, "learning_rate": 3e-3, "num_train_epochs": 20}
        own = of(demo_lm, demo_task, rows, shrinkage={"weight": 0.5}, label_check=reader)
        assert own.aim is not own.target
        texts.append(own.folder.load_state("prior-texts")[1]["texts"])
    assert texts[0] != texts[1]
    assert all(torch.equal(value, before[name]) for name, value in demo_lm.model.state_dict().items())


@pytest.mark.parametrize(("solver", "weight"), [("admm", "auto"), ("admm", 0.5), ("search", 0)])
def test_it_is_not_asked_for(demo_lm: Any, demo_task: Any, solver: str, weight: Any) -> None:
    settings = search_config(solver=solver, shrinkage={"weight": weight})
    search = Search(BlockRunner(demo_lm, demo_task, settings))
    target = compute_target(demo_lm, demo_task, [[texts] for texts in demo_rows()]).centred()
    assert find_shift(search, target) is None
    assert find_shift(Search(BlockRunner(demo_lm, demo_task, search_config(shrinkage=AUTO))), target) is not None


def test_classes_of_one_row_are_taken_at_their_word(
    demo_lm: Any, demo_task: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """How far a single row is off is not known, and that is said."""
    target = compute_target(demo_lm, demo_task, [[texts] for texts in demo_rows(1)]).centred()
    assert find_shift(Search(BlockRunner(demo_lm, demo_task, search_config(shrinkage=AUTO))), target) is None
    assert "every class has one real row" in caplog.text


# ---- a run


def run(lm: Any, *more: Any, **changes: Any) -> Any:
    rows = [(text, label) for label, texts in enumerate(demo_rows(4)) for text in texts]
    settings = search_config(**{"space": {"public_texts": 12}, "shrinkage": AUTO, **changes})
    return generate(lm, "sst2", rows, settings, *more)


def test_a_run_says_what_it_aimed_at(demo_lm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gradmm"):
        found = run(demo_lm, tmp_path / "run").metrics
    own = found["shrinkage"]
    assert set(own) == {"weight", "noise_share", "distance"} and own["noise_share"] > 0.3
    assert own["weight"] == pytest.approx(0.7 * own["noise_share"])
    assert own["distance"] < found["synthetic"]["distance"], "nearer to what it was made towards than to the rows"
    said = f"few rows: {100 * own['noise_share']:.0f}% of what their mean gradient says is noise"
    assert said in caplog.text
    assert run(demo_lm, **ALONE).metrics["shrinkage"] is None
    asked = run(demo_lm, shrinkage={"weight": 0.25}).metrics["shrinkage"]
    assert (asked["weight"], asked["noise_share"]) == (0.25, None)


def test_wherever_it_is_interrupted_it_aims_at_the_same(
    demo_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And which texts the reader chose is not asked again."""
    run(demo_lm, tmp_path / "whole", label_check=READER)
    for stage in ("prior", "form"):
        with pytest.raises(KeyboardInterrupt):
            run(demo_lm, tmp_path / "run", StopAt(stage), label_check=READER)
    monkeypatch.setattr(shrinking, "_surest", lambda *_: pytest.fail("it is kept"))
    run(demo_lm, tmp_path / "run", label_check=READER)
    assert data_bytes(tmp_path / "run") == data_bytes(tmp_path / "whole")
    whole, again = (json.loads((tmp_path / one / "metrics.json").read_text()) for one in ("whole", "run"))
    assert again["shrinkage"] == whole["shrinkage"] is not None


# ---- with privacy


@pytest.mark.parametrize("weight", ["auto", 0.5])
def test_a_private_run_takes_the_release_alone(demo_lm: Any, tmp_path: Path, weight: Any) -> None:
    assert make_private(demo_lm, PRIVATE_ROWS, tmp_path / "run").metrics["shrinkage"] is None
    message = f"shrinkage.weight is {weight!r}, and a private run aims at the release as it is: how much real rows"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_private(demo_lm, PRIVATE_ROWS, tmp_path / "other", shrinkage={"weight": weight})
    settings = {"shrinkage": {"share": 0.5}}  # of no meaning there, and no harm
    assert make_private(demo_lm, PRIVATE_ROWS, tmp_path / "third", **settings).metrics["shrinkage"] is None
