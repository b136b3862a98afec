"""What a report draws: coordinates against an eigendecomposition by hand, counts against counting."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradmm import figures
from gradmm.gradients.target import ClassTarget, ReleasedTarget

V, D = 5, 4


def released(*vectors: torch.Tensor) -> ReleasedTarget:
    """Dense targets, with a bias of nothing."""
    return ReleasedTarget(tuple(ClassTarget(None, (vector.view(V, D), torch.zeros(V))) for vector in vectors))


def drawn(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, V * D, generator=generator))


def test_a_map_has_the_principal_components_of_the_directions() -> None:
    vectors = drawn(0, 6)
    found = figures.gradient_map({"target": released(*vectors[:3]), "set": released(*vectors[3:])}, "joint")
    unit = torch.stack([v / v.norm() for v in vectors]).double()
    centred = unit - unit.mean(0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:2].T
    expected = expected * torch.where(expected[0] < 0, -1.0, 1.0)
    at = torch.tensor([[point["x"], point["y"]] for point in found["points"]], dtype=torch.float64)
    assert torch.allclose(at, expected, atol=1e-5)
    assert found["explained"] == pytest.approx((values.square() / values.square().sum())[:2].tolist(), abs=1e-5)
    assert [(p["kind"], p["label"]) for p in found["points"]] == [
        *(("target", label) for label in range(3)),
        *(("set", label) for label in range(3)),
    ]


def test_a_map_does_not_see_how_long_a_gradient_is() -> None:
    vectors = drawn(1, 4)
    longer = [3 * vectors[0], *vectors[1:]]
    a, b = (figures.gradient_map({"target": released(*own)}, "joint")["points"] for own in (vectors, longer))
    for one, other in zip(a, b, strict=True):
        assert (one["x"], one["y"]) == pytest.approx((other["x"], other["y"]), abs=1e-5)


def test_sets_of_one_direction_are_in_one_place() -> None:
    (vector,) = drawn(2, 1)
    found = figures.gradient_map({"target": released(vector, 2 * vector)}, "joint")
    assert all((point["x"], point["y"]) == pytest.approx((0, 0), abs=1e-3) for point in found["points"])


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.lists(st.integers(1, 500), min_size=1), min_size=1))
def test_every_text_is_in_the_bin_of_its_length(tokens: dict[str, list[int]]) -> None:
    found = figures.lengths(tokens)
    edges = found["edges"]
    assert len(edges) <= 26 and len({b - a for a, b in pairwise(edges)}) == 1
    for name, own in tokens.items():
        counts = [sum(low <= count < high for count in own) for low, high in pairwise(edges)]
        assert found["sets"][name] == counts
        assert sum(counts) == len(own)


def test_words_are_those_whose_shares_differ_most() -> None:
    ours = [["A fine, fine film."], ["Dull film"]]
    theirs = [["a plain film"], ["plain, dull."]]
    found = figures.words(ours, theirs, "real")
    shares = [Counter(w for own in texts for t in own for w in figures.words_of(t)) for texts in (ours, theirs)]
    assert found["more"][0] == {"word": "fine", "synthetic": 2 / 6, "reference": 0.0}
    assert found["fewer"][0] == {"word": "plain", "synthetic": 0.0, "reference": 2 / 5}
    for one in found["more"] + found["fewer"]:
        assert one["synthetic"] == shares[0][one["word"]] / 6
        assert one["reference"] == shares[1][one["word"]] / 5
    assert all(one["synthetic"] > one["reference"] for one in found["more"])
    assert all(one["synthetic"] < one["reference"] for one in found["fewer"])


def test_nothing_is_more_frequent_in_a_set_than_in_itself() -> None:
    texts = [["one two"], ["three"]]
    assert figures.words(texts, texts, "lm") == {"reference": "lm", "more": [], "fewer": []}


@given(st.integers(2, 1000))
def test_a_curve_keeps_its_ends_and_its_order(count: int) -> None:
    points = [(float(i), float(-i)) for i in range(count)]
    found = figures.thinned(points)
    assert len(found) == min(count, 200)
    assert (found[0], found[-1]) == (list(points[0]), list(points[-1]))
    assert found == sorted(found)
    assert all(tuple(point) in points for point in found)


def test_history_has_the_mean_over_blocks_and_every_group_of_classes() -> None:
    trace = [
        {"outer": outer, "best": best, "primal_residual": 1.0, "dual_residual": 2.0}
        for outer, best in ((1, 0.5), (2, 0.25), (1, 0.25), (2, 0.125))
    ]
    groups = [
        {"classes": [1], "exchanges": [0.0, -1.0], "refinement": [[0, -1.0], [8, -1.5]]},
        {"classes": [3], "exchanges": [3.0], "refinement": []},
        {"classes": [0, 2], "exchanges": [2.0, 1.0], "refinement": []},
    ]
    found = {
        (one["stage"], one["label"], one["quantity"]): one["points"] for one in figures.history(trace, groups)
    }
    assert found == {
        ("admm", None, "distance"): [[1, 0.375], [2, 0.1875]],
        ("admm", None, "primal residual"): [[1, 1.0], [2, 1.0]],
        ("admm", None, "dual residual"): [[1, 2.0], [2, 2.0]],
        ("selection", 1, "objective"): [[0, 0.0], [1, -1.0]],
        ("refinement", 1, "objective"): [[0, -1.0], [8, -1.5]],
        ("selection", None, "objective"): [[0, 2.0], [1, 1.0]],
    }, "a curve of one point, or of none, is no curve; that of several classes is no single one's"


def test_the_nearest_row_shares_most_word_pairs() -> None:
    texts = [["the film is fine", "nothing like it", "The end."], ["the film is dull"]]
    rows = [["a film is fine, really", "the film is fine too"], ["the end"]]
    found = figures.nearest_rows(texts, [[own] for own in rows])
    assert found == [{"row": 0, "text": "the film is fine too", "overlap": 1.0}]
    texts[0][2] = "a film is"
    rows[0].append("A film is here")
    found = figures.nearest_rows(texts, [[rows[0][:1], rows[0][1:]], [rows[1]]])
    assert found[1] == {"row": 2, "text": "a film is fine, really", "overlap": 1.0}, "the first of equals"
