"""Relabelling: against the rule written out, and what every class is left with."""

import logging

import torch
from hypothesis import given
from hypothesis import strategies as st

from gradmm.solvers.pool import Candidate, word_pairs
from gradmm.solvers.relabelling import relabel

NAMES = ("bad", "so-so", "good")
ALIKE = 0.8
WORDS = [f"{a} {b}" for a in ("dull", "fine", "great") for b in ("film", "story", "end", "cast", "plot", "score")]


def pools_of(texts):
    return [[Candidate(text, f"{name}'s") for text in sorted(own)] for name, own in zip(NAMES, texts, strict=True)]


@st.composite
def problems(draw, counts=st.integers(0, 4)):
    """Pools of three classes, which may share texts, probabilities with ties, and how many texts are asked for."""
    pools = pools_of([draw(st.sets(st.sampled_from(WORDS), min_size=1, max_size=6)) for _ in NAMES])
    scores = []
    for pool in pools:
        odds = draw(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=len(pool), max_size=len(pool)))
        scores.append(torch.nn.functional.normalize(torch.tensor(odds, dtype=torch.float32), p=1, dim=1))
    return pools, scores, [min(draw(counts), len(pool)) for pool in pools]


def texts(candidates):
    return [candidate.text for candidate in candidates]


@given(problems(st.just(0)))
def test_where_no_class_could_starve_every_text_is_in_its_most_probable_class(problem):
    pools, scores, counts = problem
    expected = [set() for _ in NAMES]
    for label, (pool, score_NC) in enumerate(zip(pools, scores, strict=True)):
        for candidate, row in zip(pool, score_NC.tolist(), strict=True):
            expected[label if row[label] == max(row) else row.index(max(row))].add(candidate.text)
    found = relabel(pools, scores, counts, NAMES, ALIKE)
    assert [set(texts(own.pool)) for own in found] == expected


@given(problems())
def test_no_class_is_left_with_fewer_than_are_asked_for_and_none_has_a_text_twice(problem):
    pools, scores, counts = problem
    for label, own in enumerate(relabel(pools, scores, counts, NAMES, ALIKE)):
        assert len(own.pool) >= counts[label]
        assert texts(own.pool) == sorted(set(texts(own.pool)))
        assert len(own.score_N) == len(own.pool) == len(pools[label]) - own.relabelled_out + own.relabelled_in
        stays = [candidate for candidate in own.pool if candidate.source == f"{NAMES[label]}'s"]
        assert len(stays) == len(pools[label]) - own.relabelled_out


@given(problems())
def test_the_score_is_the_probability_of_the_new_label_and_the_source_stays(problem):
    pools, scores, counts = problem
    for label, own in enumerate(relabel(pools, scores, counts, NAMES, ALIKE)):
        for candidate, score in zip(own.pool, own.score_N, strict=True):
            origin = [f"{name}'s" for name in NAMES].index(candidate.source)
            assert score == scores[origin][texts(pools[origin]).index(candidate.text), label]


@given(problems())
def test_what_stays_against_its_probability_is_the_most_probable_and_no_more_than_it_takes(problem):
    pools, scores, counts = problem
    for label, own in enumerate(relabel(pools, scores, counts, NAMES, ALIKE)):
        stays = {candidate.text for candidate in own.pool if candidate.source == f"{NAMES[label]}'s"}
        against, gone = [], []
        for text, row in zip(texts(pools[label]), scores[label].tolist(), strict=True):
            if row[label] < max(row):
                (against if text in stays else gone).append(row[label])
        assert not against or len(own.pool) == counts[label]
        assert not against or not gone or min(against) >= max(gone)


def pool_and_scores(*rows):
    """A pool of texts with the probabilities of three classes, in the order of texts."""
    rows = sorted(rows)
    return [Candidate(text, "lm") for text, *_ in rows], torch.tensor([row for _, *row in rows])


def test_a_class_that_all_would_leave_keeps_its_most_probable_ones_and_says_so(caplog):
    a = pool_and_scores(("dull film", 0.3, 0.6, 0.1), ("fine end", 0.1, 0.8, 0.1), ("great cast", 0.4, 0.5, 0.1))
    b = pool_and_scores(("dull plot", 0.2, 0.7, 0.1))
    c = pool_and_scores(("great score", 0.1, 0.1, 0.8))
    pools, scores = zip(a, b, c, strict=True)
    found = relabel(pools, scores, [2, 1, 1], NAMES, ALIKE)
    assert [texts(own.pool) for own in found] == [
        ["dull film", "great cast"],
        ["dull plot", "fine end"],
        ["great score"],
    ]
    assert [(own.relabelled_in, own.relabelled_out) for own in found] == [(0, 1), (1, 0), (0, 0)]
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (
            logging.WARNING,
            "class bad: relabelling would leave 0 candidates, and 2 are needed; the most probable ones of its own "
            "stay",
        )
    ]


def test_who_comes_is_as_good_as_who_stays(caplog):
    """Two go, two come: nobody has to stay."""
    a = pool_and_scores(("dull film", 0.3, 0.6, 0.1), ("fine end", 0.1, 0.8, 0.1))
    b = pool_and_scores(("dull plot", 0.8, 0.1, 0.1), ("fine cast", 0.8, 0.1, 0.1))
    pools, scores = zip(a, b, strict=True)
    found = relabel(pools, scores, [2, 2], NAMES[:2], ALIKE)
    assert [own.pool for own in found] == [b[0], a[0]]
    assert not caplog.records


def test_a_text_that_stays_for_one_class_is_not_counted_on_by_another(caplog):
    """The first class keeps its only text, and so the second, to which it would have gone, keeps its own."""
    a = pool_and_scores(("dull film", 0.3, 0.6, 0.1))
    b = pool_and_scores(("dull plot", 0.1, 0.2, 0.7))
    c = pool_and_scores(("great score", 0.1, 0.1, 0.8))
    pools, scores = zip(a, b, c, strict=True)
    found = relabel(pools, scores, [1, 1, 1], NAMES, ALIKE)
    assert [own.pool for own in found] == [a[0], b[0], c[0]]
    assert [record.message.partition(":")[0] for record in caplog.records] == ["class bad", "class so-so"]


def test_a_text_like_one_that_its_new_class_has_is_not_added():
    long = "it is the best story that I have ever seen on any screen at all"
    assert len(word_pairs(long) & word_pairs(f"{long}!")) == len(word_pairs(long))
    a = pool_and_scores((f"{long}!", 0.1, 0.9, 0.0), ("fine end", 0.1, 0.9, 0.0), ("dull cast", 0.9, 0.1, 0.0))
    b = pool_and_scores((long, 0.4, 0.6, 0.0), ("fine end", 0.2, 0.8, 0.0))
    pools, scores = zip(a, b, strict=True)
    stays, has = relabel(pools, scores, [1, 1], NAMES[:2], ALIKE)
    assert texts(stays.pool) == ["dull cast"] and (stays.relabelled_in, stays.relabelled_out) == (0, 2)
    assert texts(has.pool) == ["fine end", long] and (has.relabelled_in, has.relabelled_out) == (0, 0)
    assert has.score_N.tolist() == scores[1][:, 1].tolist()


def test_a_pool_with_fewer_than_are_asked_for_keeps_as_many_as_it_has():
    a, b = pool_and_scores(("dull film", 0.3, 0.6, 0.1)), pool_and_scores(("dull plot", 0.1, 0.9, 0.0))
    pools, scores = zip(a, b, strict=True)
    assert [own.pool for own in relabel(pools, scores, [5, 5], NAMES[:2], ALIKE)] == [a[0], b[0]]


def test_nothing_moves_where_every_text_is_where_it_belongs():
    pools = pools_of([WORDS[:2], WORDS[2:4], WORDS[4:5]])
    scores = [torch.eye(3)[[label] * len(pool)] for label, pool in enumerate(pools)]
    found = relabel(pools, scores, [1, 1, 1], NAMES, ALIKE)
    assert [own.pool for own in found] == pools
    assert [(own.relabelled_in, own.relabelled_out) for own in found] == [(0, 0)] * 3
