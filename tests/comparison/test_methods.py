"""What each method of a comparison is: how many texts, from where, chosen by what."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from gradmm.comparison import methods
from gradmm.comparison.material import Material
from gradmm.comparison.methods import METHODS, get_method, own_texts
from gradmm.config import GenerateConfig
from gradmm.data.sources import LabelledData, load_data
from gradmm.errors import ConfigError, DataError, GradmmError
from gradmm.models import LanguageModel
from gradmm.pipeline import generate
from gradmm.seeds import make_generator
from material_tools import COUNT, ROWS, SMALL, MakeMaterial, measured

SYNTHETIC = ("search", "selection", "admm", "lm_random", "lm_by_label", "lm_taught", "lm_few_shot")
CONTROLS = ("projection", "noise", "other_class")
REAL = ("real_random", "real_herding", "real_k_center", "real_coreset")


# ---- all of them


def test_every_method_is_of_one_kind_here() -> None:
    assert {*SYNTHETIC, *CONTROLS, *REAL, "real_all", "search_and_real"} == set(METHODS)
    kinds = {name: method.kind for name, method in METHODS.items()}
    assert {name for name, kind in kinds.items() if kind == "control"} == set(CONTROLS)
    assert {name for name, kind in kinds.items() if kind == "synthetic"} == set(SYNTHETIC)


def test_every_method_gives_so_many_texts_per_class(made: Any, rows: LabelledData) -> None:
    all_rows = [rows.texts_of(0), rows.texts_of(1)]
    for name, texts in made.items():
        beside = {"real_all": -COUNT, "search_and_real": 0}
        more = len(all_rows[0]) + beside[name] if name in beside else 0
        assert [len(own) for own in texts] == [COUNT + more] * 2, name
        assert all(text.strip() for own in texts for text in own), name
    assert made["real_all"] == all_rows
    assert made["search_and_real"] == [a + b for a, b in zip(made["search"], all_rows, strict=True)]


@pytest.mark.parametrize("name", [*SYNTHETIC, *CONTROLS])
def test_no_real_row_is_handed_out(name: str, made: Any, rows: LabelledData) -> None:
    real = {" ".join(row["text"].split()).casefold() for row in rows.rows}
    assert not real & {" ".join(text.split()).casefold() for own in made[name] for text in own}


@pytest.mark.parametrize("name", REAL)
def test_real_methods_hand_out_different_rows_of_the_class(name: str, made: Any, rows: LabelledData) -> None:
    for label, texts in enumerate(made[name]):
        assert set(texts) <= set(rows.texts_of(label))
        assert len(set(texts)) == COUNT


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_same_seed_gives_the_same_texts_whatever_ran_before(
    name: str, made: Any, make_material: MakeMaterial
) -> None:
    assert METHODS[name].make(make_material(), COUNT).texts == made[name]


@pytest.mark.parametrize("name", ["search", "lm_random", "lm_few_shot", "noise", "real_random", "admm"])
def test_another_seed_gives_other_texts(name: str, made: Any, make_material: MakeMaterial) -> None:
    assert METHODS[name].make(make_material(seed=1), COUNT).texts != made[name]


@pytest.mark.parametrize("name", [*REAL, "search", "selection", "lm_by_label"])
def test_a_budget_beyond_the_real_rows_is_no_failure(name: str, make_material: MakeMaterial) -> None:
    few = load_data([row for n, row in enumerate(ROWS) if n < 5])  # three and two
    texts = METHODS[name].make(make_material(budget=4, own=few), 4).texts
    assert [len(own) for own in texts] == ([3, 2] if name in REAL else [4, 4])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_is_shared_is_computed_and_timed_before(
    name: str, make_material: MakeMaterial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method's own time would hold what the next one gets for nothing."""
    material, method = make_material(), METHODS[name]
    material.prepare(method.needs)
    assert set(method.needs) == set(material.seconds)
    has_own_pool = name in ("noise", "other_class")
    for shared in ("write", *(() if has_own_pool else ("look_at", "pool"))):
        monkeypatch.setattr(f"gradmm.comparison.material.Search.{shared}", None)
    if not has_own_pool:
        monkeypatch.setattr("gradmm.label_check.LabelCheck.own", None)
    monkeypatch.setattr("gradmm.public_text.PublicText.fit_space", None)
    for shared in ("features", *(() if name == "other_class" else ("class_target",))):
        monkeypatch.setattr(f"gradmm.comparison.material.{shared}", None)
    assert method.make(material, COUNT).texts


def test_time_of_what_is_shared_counts_for_everyone(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "seconds", {"lm_texts": 5.0, "pools": 2.0, "lm_more": 3.0})
    assert [material.prepare(METHODS[name].needs) for name in ("lm_random", "lm_by_label", "real_all")] == [
        7,
        8,
        0,
    ]


# ---- ours


@pytest.mark.parametrize("classes", ["together", "apart"])
@pytest.mark.parametrize("space", [{}, {"maps": []}, {"loss": "vocabulary", "maps": [], "centred": False}])
def test_search_gives_what_generate_gives(
    classes: str, space: dict[str, Any], lm: LanguageModel, rows: LabelledData, make_material: MakeMaterial
) -> None:
    how = {"space": SMALL["space"] | space, "distance": {"classes": classes}}
    config = GenerateConfig.model_validate(
        SMALL | how | {"texts_per_class": COUNT, "seed": 4, "references": False}
    )
    result = generate(lm, "sst2", rows, config)
    texts = METHODS["search"].make(make_material(seed=4, **how), COUNT).texts
    assert [sorted(own) for own in texts] == [sorted(result.texts_of(label)) for label in (0, 1)]


def test_admm_gives_what_generate_gives(
    lm: LanguageModel, rows: LabelledData, make_material: MakeMaterial
) -> None:
    more = {"texts_per_class": COUNT, "seed": 4, "solver": "admm", "references": False}
    result = generate(lm, "sst2", rows, GenerateConfig.model_validate(SMALL | more))
    texts = METHODS["admm"].make(make_material(seed=4), COUNT).texts
    assert texts == [result.texts_of(label) for label in (0, 1)]


def test_refinement_starts_from_the_selection_and_lowers_the_objective(
    make_material: MakeMaterial, made: Any
) -> None:
    kept = make_material(refinement={"evaluations": 0})
    assert METHODS["search"].make(kept, COUNT).texts == made["selection"]
    assert made["search"] != made["selection"]


@pytest.mark.parametrize("classes", ["together", "apart"])
def test_selection_is_nearer_than_what_no_gradient_chose(classes: str, make_material: MakeMaterial) -> None:
    near = {"nll_weight": 0}
    as_they_are = {"shrinkage": {"weight": 0}, "label_check": {"reader": "model"}}
    material = make_material(selection=near, distance={"classes": classes}, **as_they_are)

    def distances(name: str) -> tuple[float, ...]:
        found = measured(material, METHODS[name].make(material, COUNT).texts).measures
        return found.class_distances if classes == "apart" else (found.distance,)

    reached = distances("selection")
    for name in ("lm_random", "lm_by_label", "noise", "other_class"):
        assert all(mine < other for mine, other in zip(reached, distances(name), strict=True)), name


def test_proportional_shares_are_none_of_a_comparisons(make_material: MakeMaterial, made: Any) -> None:
    shares = make_material(class_balance="proportional")
    assert METHODS["lm_random"].make(shares, COUNT).texts == made["lm_random"]


# ---- the LM's own


def test_lm_methods_choose_from_what_the_lm_wrote(material: Material, made: Any) -> None:
    pools = {name: material.grow(name, material.target) for name in ("noise", "other_class")}  # they are there
    pools |= {"lm_random": material.pools, "lm_by_label": material.lm_more[0], "selection": material.grown}
    for name, own in pools.items():
        for label, pool in enumerate(own):
            written = {candidate.text for candidate in pool}
            assert set(made[name][label]) <= written
            assert len(set(made[name][label])) == COUNT
            shares = Counter(candidate.source for candidate in pool)
            assert ("writer" in shares) == (not name.startswith("lm_"))


def test_lm_by_label_chooses_from_as_many_texts_as_ours(material: Material) -> None:
    """What the LM wrote for the first round, and as much more as the writer wrote in the others."""
    search = material.search(material.budget)
    for label, pool in enumerate(material.lm_more[0]):
        written = {candidate.text for candidate in pool}
        assert {candidate.text for candidate in material.pools[label]} <= written
        assert (
            len(material.pools[label]) < len(written) <= search.round_counts[label] * material.config.writer.rounds
        )


def test_lm_by_label_takes_the_highest_scores(material: Material, made: Any) -> None:
    for pool, score_N, texts in zip(*material.lm_more, made["lm_by_label"], strict=True):
        score_of = {candidate.text: float(score) for candidate, score in zip(pool, score_N, strict=True)}
        left = [score for text, score in score_of.items() if text not in texts]
        assert min(score_of[text] for text in texts) >= max(left)
        assert min(left) < max(left)


def test_a_larger_random_set_only_adds_texts(material: Material) -> None:
    for name in ("lm_random", "real_random", "real_herding", "real_k_center"):
        few, more = (METHODS[name].make(material, count).texts for count in (2, COUNT))
        assert all(set(a) < set(b) for a, b in zip(few, more, strict=True)), name


def test_few_shot_shows_the_lm_rows_of_the_class(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(
        methods,
        "write_after",
        lambda runner, label, texts, shots, size, g: shown.append((texts, shots)) or ["x"] * size,
    )
    assert METHODS["lm_few_shot"].make(material, COUNT).texts == [["x"] * COUNT] * 2
    assert shown == [(own, 4) for own in material.real_texts]


def test_few_shot_writes_again_what_only_repeats_a_row(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(runner: Any, label: int, texts: list[str], shots: int, size: int, generator: Any) -> list[str]:
        calls.append(size)
        return [f" {texts[0]}\n", *(f"of its own {len(calls)} {n}" for n in range(size - 1))]

    calls: list[int] = []
    monkeypatch.setattr(methods, "write_after", write)
    monkeypatch.setattr(methods, "_ROUNDS", 3)
    with pytest.raises(GradmmError) as caught:  # the last text is a row again and again
        METHODS["lm_few_shot"].make(material, COUNT)
    assert calls == [3, 1, 1]
    assert str(caught.value) == (
        f"the LM {material.lm.name!r} repeats the rows that lm_few_shot shows it: 2 of 3 texts are its own after "
        "3 tries; leave lm_few_shot out, or raise initial.temperature"
    )
    original = [f"new {n}" for n in range(COUNT)]
    answers = [[material.real_texts[0][1], *original[:2]], original[2:], original]
    monkeypatch.setattr(methods, "write_after", lambda *args: answers.pop(0))
    assert METHODS["lm_few_shot"].make(material, COUNT).texts == [original, original]


# ---- real rows


def objective(material: Material, texts: list[list[str]]) -> float:
    """What selection lowers, of real rows: log of the distance, and log-perplexity beyond that of all of them."""
    own, every = measured(material, texts), measured(material, material.real_texts)
    free = sum(sum(nll) / len(nll) for nll in every.log_perplexities) / len(texts)
    beyond = max(0.0, own.measures.log_perplexity - free)
    return math.log(own.measures.distance) + material.config.selection.nll_weight * beyond


def test_the_coreset_is_better_than_random_subsets(material: Material, made: Any) -> None:
    generator = make_generator(0, "subsets")
    reached, found = objective(material, made["real_coreset"]), []
    for _ in range(20):
        drawn = [torch.randperm(len(own), generator=generator)[:COUNT].tolist() for own in material.real_texts]
        subset = [[own[i] for i in at] for own, at in zip(material.real_texts, drawn, strict=True)]
        found.append(objective(material, subset))
    assert reached <= min(found) + 1e-6
    assert reached < sum(found) / len(found) - 0.01


def test_coresets_choose_from_so_many_rows_at_most(make_material: MakeMaterial) -> None:
    material = make_material()
    material.max_real = 4
    assert [len(own) for own in material.real_texts] == [4, 4]
    other = make_material(seed=1)
    other.max_real = 4
    assert other.real_texts != material.real_texts
    for name in REAL[1:]:
        assert all(map(set.issuperset, map(set, material.real_texts), METHODS[name].make(material, COUNT).texts))


def test_k_center_starts_elsewhere_for_another_seed(make_material: MakeMaterial) -> None:
    firsts = {METHODS["real_k_center"].make(make_material(seed=seed), 1).texts[0][0] for seed in range(6)}
    herded = {METHODS["real_herding"].make(make_material(seed=seed), 1).texts[0][0] for seed in range(6)}
    assert len(firsts) > 1 == len(herded)


# ---- by name


def test_an_unknown_method_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        get_method("lm_by_labels")
    assert str(caught.value) == (
        "no method 'lm_by_labels'; give file:PATH for texts of your own; did you mean 'lm_by_label'?"
    )
    for name, method in METHODS.items():
        assert get_method(name) is method and method.name == name


def test_a_file_of_ones_own_is_a_method(tmp_path: Any, material: Material) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,label\nHow dull.,negative\nHow bad.,negative\nHow fine.,positive\n")
    method = get_method(f"file:{path}")
    assert (method.name, method.kind, method.needs) == (f"file:{path}", "synthetic", ())
    texts = method.make(material, 1).texts
    assert texts[0][0] in ("How dull.", "How bad.") and texts[1] == ["How fine."]
    assert method.make(material, COUNT).texts == [["How dull.", "How bad."], ["How fine."]]
    assert own_texts("search", ("negative", "positive")) is None
    with pytest.raises(DataError):
        own_texts(f"file:{tmp_path / 'nowhere.csv'}", ("negative", "positive"))


def test_a_run_of_ones_own_is_a_method(
    tmp_path: Any, lm: LanguageModel, material: Material, rows: LabelledData
) -> None:
    config = GenerateConfig.model_validate(SMALL | {"texts_per_class": 2, "references": False})
    result = generate(lm, "sst2", rows, config, tmp_path / "run")
    texts = get_method(f"file:{tmp_path / 'run'}").make(material, 2).texts
    assert texts == [result.texts_of(0), result.texts_of(1)]
