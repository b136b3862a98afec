"""`gradmm.comparison.coresets`: against literal loops, exhaustive search, and the model text by text."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradmm.comparison.coresets import draw_start, features, herding, k_center
from gradmm.errors import ConfigError, DataError, NonFiniteError
from gradmm.memory import BatchLimit

TEXTS = ("A film.", "The story is dull and bad, and it makes me sad.", "happy", "A great end.", "A dull story")
both = pytest.mark.parametrize("choose", [herding, k_center])


def cloud(seed, size=12, width=4):
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed)) + 0.5


clouds = st.integers(0, 9999).map(cloud)
counts = st.integers(1, 12)

# ---- herding


def distance_of_means(rows, members):
    """Of all rows and of some, each divided by its length, if it has one."""
    unit = [[value / (sum(v * v for v in row) ** 0.5 or 1) for value in row] for row in rows]
    every = [sum(column) / len(unit) for column in zip(*unit, strict=True)]
    some = [sum(column) / len(members) for column in zip(*(unit[i] for i in members), strict=True)]
    return sum((a - b) ** 2 for a, b in zip(every, some, strict=True)) ** 0.5


@settings(max_examples=30)
@given(clouds, counts, st.sets(st.integers(0, 11)))
@example(cloud(9), 6, set(range(11)))  # the one row that points anywhere and a row that does not are equally good
def test_herding_is_greed_for_the_mean(features_ND, count, without_length):
    features_ND[sorted(without_length)] = 0
    rows, chosen = features_ND.double().tolist(), []
    for _ in range(count):
        free = [i for i in range(12) if i not in chosen]
        # squared, times the number squared: what may differ by rounding is of size 1, the first of equals is meant
        value = {i: (distance_of_means(rows, [*chosen, i]) * (len(chosen) + 1)) ** 2 for i in free}
        chosen.append(next(i for i in free if value[i] <= min(value.values()) + 1e-10))
    assert herding(features_ND, count) == chosen


@settings(max_examples=30)
@given(clouds)
def test_herding_follows_its_own_weights(features_ND):
    """Welling's dynamics, as iCaRL has them: w grows by the mean and shrinks by whoever agrees with it most."""
    unit_ND = features_ND.double() / features_ND.double().norm(dim=1, keepdim=True)
    w_D, chosen = unit_ND.mean(0), []
    for _ in range(12):
        ranked = (unit_ND @ w_D).argsort(descending=True).tolist()
        chosen.append(next(i for i in ranked if i not in chosen))
        w_D = w_D + unit_ND.mean(0) - unit_ND[chosen[-1]]
    assert herding(features_ND, 12) == chosen


def test_herded_rows_have_a_nearer_mean_than_nine_in_ten_drawn_ones():
    for seed in range(10):
        features_ND = cloud(seed, 60)
        rows, draw = features_ND.double().tolist(), torch.Generator().manual_seed(seed)
        drawn = [distance_of_means(rows, torch.randperm(60, generator=draw)[:8].tolist()) for _ in range(20)]
        assert distance_of_means(rows, herding(features_ND, 8)) < sorted(drawn)[2]


@settings(max_examples=30)
@given(clouds, counts, st.lists(st.floats(0.1, 10), min_size=12, max_size=12))
def test_the_length_of_a_row_does_not_matter_to_herding(features_ND, count, lengths):
    scaled_ND = features_ND.double() * torch.tensor(lengths, dtype=torch.float64)[:, None]
    assert herding(scaled_ND, count) == herding(features_ND, count)


# ---- k-center


def radius(distance_NN, members):
    """How far any row is from the nearest of some."""
    return max(min(row[i] for i in members) for row in distance_NN)


def distances(features_ND):
    rows = features_ND.double().tolist()
    return [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) ** 0.5 for q in rows] for p in rows]


@settings(max_examples=30)
@given(clouds, counts, st.one_of(st.none(), st.integers(0, 11)))
def test_k_center_goes_to_whoever_is_farthest(features_ND, count, start):
    chosen, distance_NN = [start], distances(features_ND)
    if start is None:
        with_mean_ND = torch.cat([features_ND.double(), features_ND.double().mean(0, keepdim=True)])
        to_mean_N = distances(with_mean_ND)[-1][:-1]
        chosen = [to_mean_N.index(min(to_mean_N))]
    while len(chosen) < count:
        free = [i for i in range(12) if i not in chosen]
        chosen.append(max(free, key=lambda i: min(distance_NN[i][j] for j in chosen)))
    assert k_center(features_ND, count, start) == chosen


@settings(max_examples=15)
@given(st.integers(0, 9999), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 8)))
def test_no_centers_are_more_than_twice_as_near(seed, count, start):
    features_ND = cloud(seed, 9, 2)
    distance_NN = distances(features_ND)
    best = min(radius(distance_NN, members) for members in combinations(range(9), count))
    assert best <= radius(distance_NN, k_center(features_ND, count, start)) <= 2 * best + 1e-9


def test_rows_far_from_the_origin_are_told_apart():
    """As the square root of |x|^2 - 2 <x, y> + |y|^2 their distances would be rounding."""
    line_ND = torch.tensor([[1e9], [1e9 + 1], [1e9 + 3], [1e9 + 7]], dtype=torch.float64).repeat(10, 3)
    assert [i % 4 for i in k_center(line_ND, 4, 0)] == [0, 3, 2, 1]


def test_a_start_is_drawn_by_its_seed():
    drawn = [draw_start(7, seed) for seed in range(100)]
    assert set(drawn) == set(range(7)) and drawn == [draw_start(7, seed) for seed in range(100)]
    with pytest.raises(AssertionError):
        k_center(cloud(0), 3, 12)


# ---- both


@both
@settings(max_examples=40)
@given(clouds, counts, st.permutations(range(12)))
def test_the_order_of_rows_plays_no_part(choose, features_ND, count, order):
    assert [order[i] for i in choose(features_ND[list(order)], count)] == choose(features_ND, count)


@both
@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_of_rows_that_are_the_same_the_first_is_taken(choose, kinds, data):
    """None twice, and none before its first double, however many there are and wherever they stand."""
    count = data.draw(st.integers(1, len(kinds)))
    chosen = choose(cloud(1, 4)[kinds], count)
    assert len(set(chosen)) == count
    for kind in range(4):
        of_kind = [i for i in chosen if kinds[i] == kind]
        assert of_kind == [i for i in range(len(kinds)) if kinds[i] == kind][: len(of_kind)]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=20))
def test_no_center_is_a_double_while_there_are_others(kinds):
    kinds_found = [kinds[i] for i in k_center(cloud(2, 4)[kinds], len(set(kinds)))]
    assert sorted(kinds_found) == sorted(set(kinds))


@both
@settings(max_examples=20)
@given(clouds, counts)
def test_a_smaller_choice_begins_a_larger_one(choose, features_ND, count):
    assert choose(features_ND, 12)[:count] == choose(features_ND, count)
    assert sorted(choose(features_ND, 12)) == list(range(12))


@both
@settings(max_examples=20)
@given(st.permutations(list(permutations((0.1, 0.7, 0.3, 0.9)))))
def test_rows_that_tie_but_for_rounding_are_taken_in_their_order(choose, rows):
    """By symmetry none is nearer to the mean than another; what they add up to in floating point differs."""
    assert choose(torch.tensor(rows, dtype=torch.float64), 1) == [0]


def test_a_start_is_not_chosen_again():
    assert k_center(torch.zeros(3, 2), 3, 1) == [1, 0, 2]


@both
def test_rows_without_length_are_chosen_from_too(choose):
    assert choose(torch.zeros(3, 2), 3) == [0, 1, 2]
    assert sorted(choose(torch.cat([torch.zeros(2, 4), cloud(0, 3)]), 5)) == list(range(5))


@both
def test_float16_is_enough_to_choose_from(choose):
    small_ND = cloud(3).half()
    assert choose(small_ND, 6) == choose(small_ND.double(), 6)


@both
@pytest.mark.parametrize("count", [-1, 0, 13])
def test_numbers_of_rows_that_there_are_not_are_refused(choose, count):
    with pytest.raises(ConfigError, match=f"{count} rows cannot be chosen from 12; ask for 1"):
        choose(cloud(0), count)


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(choose, bad):
    features_ND = cloud(0)
    features_ND[7, 1] = bad
    with pytest.raises(NonFiniteError, match="row 7"):
        choose(features_ND, 2)


# ---- features


@pytest.mark.parametrize("verbalisers", [(" bad", " great"), (" surprised", " very bad", " bad")], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_features_are_the_state_before_the_label(tiny_lm, tiny_task, kind, verbalisers):
    """The last one of the rendering without its label, alone in the model, whatever the label is."""
    lm = tiny_lm(kind)
    task = tiny_task(lm, verbalisers)
    for label, tokens in enumerate(task.label_ids):
        found_ND = features(lm, task, label, TEXTS)
        assert found_ND.dtype == torch.float32 and not found_ND.requires_grad
        for text, found_D in zip(TEXTS, found_ND, strict=True):
            ids = torch.tensor([task.render(text, label)[: -len(tokens)]])
            with torch.no_grad():
                states_SD = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            torch.testing.assert_close(found_D, states_SD[-1], rtol=1e-4, atol=1e-4)
        assert found_ND.std(0).min() > 1e-3, "texts have to differ for this to tell anything"


@settings(max_examples=6)
@given(st.permutations(range(len(TEXTS))), st.integers(1, len(TEXTS) + 1))
def test_neither_order_nor_batches_change_features(demo_lm, demo_task, order, size):
    together_ND = features(demo_lm, demo_task, 1, TEXTS)
    found_ND = features(demo_lm, demo_task, 1, [TEXTS[i] for i in order], BatchLimit(size))
    torch.testing.assert_close(found_ND, together_ND[list(order)], rtol=1e-4, atol=1e-4)


def test_a_batch_that_is_too_large_is_done_again_in_smaller_ones(tiny_lm, tiny_task, monkeypatch):
    lm = tiny_lm("gpt2")
    task, limit, plain = tiny_task(lm), BatchLimit(4), type(lm).hidden
    expected_ND = features(lm, task, 0, TEXTS)

    def small(self, embeds_NSE, index_NL):
        if len(embeds_NSE) > 2:
            raise torch.OutOfMemoryError("too many")
        return plain(self, embeds_NSE, index_NL)

    monkeypatch.setattr(type(lm), "hidden", small)
    torch.testing.assert_close(features(lm, task, 0, TEXTS, limit), expected_ND, rtol=1e-4, atol=1e-4)
    assert limit.size == 2


def test_a_text_without_room_is_named(demo_lm, demo_task):
    with pytest.raises(DataError, match=r"class 'positive' has \d+ tokens.*'word word"):
        features(demo_lm, demo_task, 1, ["A film.", "word " * 2000])
