"""What a set of texts is told to be worth, against definitions written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from gradmm.data.task import BoundTask
from gradmm.decoding import log_perplexity
from gradmm.gradients.distances import DistanceConfig
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.target import ReleasedTarget
from gradmm.measures import SetMeasures, distinct_2, measure
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel

REAL = [
    ["The film is bad.", "A dull story with a bad end.", "The end is dull."],
    ["The film is great.", "A fine story and a great end."],
]
OTHER = [["This makes me feel sad.", "bad bad bad"], ["happy", "This film makes me happy. A great end!"]]
UNEVEN = [[*OTHER[0], "dull"], OTHER[1][:1]]
JOINT = DistanceConfig(bias="joint")
APART = DistanceConfig(bias="joint", classes="apart")

BindTask = Callable[..., BoundTask]


def target_of(lm: LanguageModel, task: BoundTask, texts: Sequence[Sequence[str]]) -> ReleasedTarget:
    return compute_target(lm, task, [[list(own)] for own in texts])


def slow_gradient(lm: LanguageModel, task: BoundTask, texts: Sequence[str], label: int) -> torch.Tensor:
    """Mean gradient of a class's loss with respect to the head's weight and bias, by autograd, text by text."""
    weight = lm.head.weight_VD.clone().requires_grad_()
    bias = torch.zeros(len(weight)) if lm.head.bias_V is None else lm.head.bias_V.clone()
    bias.requires_grad_()
    loss = torch.zeros(())
    for text in texts:
        ids = [*task.prefix_ids, *task.text_ids(text), *task.suffix_ids, *task.label_ids[label]]
        count = len(task.label_ids[label])
        hidden = lm.body(input_ids=torch.tensor([ids])).last_hidden_state[0, -count - 1 : -1]
        logits = hidden @ weight.T + bias
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-count:]), reduction="sum")
    grads = torch.autograd.grad(loss / len(texts), [weight] if lm.head.bias_V is None else [weight, bias])
    return torch.cat([grad.flatten() for grad in grads])


# ---- distinct_2


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b c"], 1.0),
        (["a b a b"], 2 / 3),  # ab ba ab
        (["a b", "a b"], 1 / 2),
        (["a b", "c d"], 1.0),  # no pair across two texts
        (["A  b\n", "a B"], 1 / 2),  # neither case nor white space counts
        (["a a a a"], 1 / 3),
    ],
)
def test_distinct_2(texts: list[str], expected: float) -> None:
    assert distinct_2(texts) == pytest.approx(expected)


@pytest.mark.parametrize("texts", [[], ["one", "two"], [""]])
def test_distinct_2_without_pairs_is_no_number(texts: list[str]) -> None:
    assert math.isnan(distinct_2(texts))


# ---- measure


def one_minus_cosine(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return 1 - float(torch.cosine_similarity(mine, theirs, dim=0))


@pytest.mark.parametrize("texts", [OTHER, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("kind", ["phi", "llama", "gpt2"])  # a bias in the head; a BOS token; tied
def test_the_distance_is_one_minus_the_cosine_of_the_gradients(
    kind: str, texts: list[list[str]], tiny_lm: Any, tiny_task: BindTask
) -> None:
    """Of classes together: of the mean gradients of all texts, those of the target in the set's proportions."""
    lm = tiny_lm(kind)
    task = tiny_task(lm, verbalisers=(" bad", " great fun"))  # one label token, and several
    target = target_of(lm, task, REAL)
    apart, together = (measure(lm, task, target, c, texts, limit=BatchLimit(1))[0] for c in (APART, JOINT))
    mine, theirs = ([slow_gradient(lm, task, some[c], c) for c in range(2)] for some in (texts, REAL))
    expected = [one_minus_cosine(*pair) for pair in zip(mine, theirs, strict=True)]
    assert min(expected) > 0.01
    for own in (apart, together):
        assert list(own.class_distances) == pytest.approx(expected, abs=1e-5)
    assert apart.distance == pytest.approx(sum(expected) / 2, abs=1e-5)
    counts, total = [len(own) for own in texts], sum(map(len, texts))
    sums = [sum(n * own for n, own in zip(counts, some, strict=True)) / total for some in (mine, theirs)]
    assert together.distance == pytest.approx(one_minus_cosine(*sums), abs=1e-5)
    assert abs(together.distance - apart.distance) > 1e-4, "so it matters which of both is taken"


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("classes", ["together", "apart"])
@pytest.mark.parametrize("name", ["cosine", "relative_l2", "tag"])
@pytest.mark.parametrize("kind", ["phi", "llama"])
def test_real_rows_are_at_no_distance_from_their_own_target(
    kind: str, name: str, classes: str, centred: bool, tiny_lm: Any, tiny_task: BindTask
) -> None:
    lm = tiny_lm(kind)
    task, config = tiny_task(lm), DistanceConfig.model_validate({"name": name, "classes": classes})
    target = target_of(lm, task, REAL).centred() if centred else target_of(lm, task, REAL)
    own, *_ = measure(lm, task, target, config, REAL, limit=BatchLimit(2))
    assert (own.distance, *own.class_distances) == pytest.approx((0, 0, 0), abs=1e-4)
    far, *_ = measure(lm, task, target, config, OTHER)
    assert min(far.distance, *far.class_distances) > 1e-2  # so nought is not what everything gets


def test_real_rows_of_the_demo_are_at_no_distance(demo_lm: LanguageModel, demo_task: BoundTask) -> None:
    target = target_of(demo_lm, demo_task, REAL)
    own, *_ = measure(demo_lm, demo_task, target, JOINT, [own[::-1] for own in REAL])
    swapped, *_ = measure(demo_lm, demo_task, target, JOINT, REAL[::-1])
    assert own.distance == pytest.approx(0, abs=1e-5)
    assert swapped.distance > 0.01


def test_duplicates_change_nothing_but_counts(tiny_lm: Any, tiny_task: BindTask) -> None:
    lm = tiny_lm("llama")
    task = tiny_task(lm)
    target = target_of(lm, task, REAL)
    once, nll, *_ = measure(lm, task, target, JOINT, OTHER)
    twice, nll_twice, *_ = measure(lm, task, target, JOINT, [own * 2 for own in OTHER])
    assert (once.texts, twice.texts) == (4, 8)
    assert twice.distinct_2 == once.distinct_2 / 2
    assert twice.tokens == once.tokens
    assert twice.log_perplexity == pytest.approx(once.log_perplexity)
    assert twice.class_distances == pytest.approx(once.class_distances, abs=1e-5)
    assert twice.distance == pytest.approx(once.distance, abs=1e-5)
    for own, doubled in zip(nll, nll_twice, strict=True):
        assert doubled == pytest.approx(own * 2)


def test_the_other_figures_are_means_over_all_texts(tiny_lm: Any, tiny_task: BindTask) -> None:
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    uneven = [["The film is bad.", "A dull story with a bad end.", "dull"], ["A great end."]]
    own, nll, *_ = measure(lm, task, target_of(lm, task, REAL), APART, uneven)
    ids = [task.text_ids(text) for texts in uneven for text in texts]
    one_by_one = [log_perplexity(lm, [row])[0] for row in ids]
    assert [len(values) for values in nll] == [3, 1]
    assert [value for values in nll for value in values] == pytest.approx(one_by_one, rel=1e-4)
    assert own == SetMeasures(
        texts=4,
        distance=pytest.approx(sum(own.class_distances) / 2),
        class_distances=own.class_distances,
        log_perplexity=pytest.approx(sum(one_by_one) / 4, rel=1e-4),
        distinct_2=1.0,
        tokens=sum(map(len, ids)) / 4,
    )
