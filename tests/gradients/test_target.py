"""Targets: the mean gradient of a class's rows, how it is held and kept, in any space."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import oracles
from gradmm.data.task import BoundTask
from gradmm.errors import DataError
from gradmm.gradients.distances import DistanceConfig
from gradmm.gradients.exact_target import TargetAccumulator, class_target, compute_target
from gradmm.gradients.factors import label_factors
from gradmm.gradients.losses import VOCABULARY, VerbaliserLoss
from gradmm.gradients.spaces import IDENTITY, Space, SpaceConfig, fit_space
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.measures import measure
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.solvers.matching import GradientMatching
from loss_oracles import Added, random_added, verbaliser_gradient, with_added
from target_tools import MIXED, SPLIT, TEXTS, assert_same, batches, random_sum


def oracle(lm, task, texts, label):
    rows = [task.render(text, label) for text in texts]
    return oracles.materialised_head_gradient(lm, rows, [len(task.label_ids[label])] * len(rows))


@pytest.mark.parametrize("kind", ["phi", "gemma2"])
def test_target_is_the_mean_gradient_of_each_class(tiny_lm, tiny_task, kind):
    lm = tiny_lm(kind)
    task = tiny_task(lm, MIXED)
    target = compute_target(lm, task, batches(SPLIT, 4))
    assert [own.factors is None for own in target.classes] == [False, False, True]
    for label, (texts, own) in enumerate(zip(SPLIT, target.classes, strict=True)):
        weight_VD, bias_V = oracle(lm, task, texts, label)
        assert oracles.relative_error(own.materialised()[0], weight_VD) < 1e-5
        if bias_V is not None:
            assert oracles.relative_error(own.materialised()[1], bias_V) < 1e-5


@pytest.mark.parametrize("size", [1, 3, 7, len(TEXTS)])
def test_batches_of_any_size_give_the_same_target(tiny_lm, tiny_task, size):
    lm, done = tiny_lm("phi"), []
    task = tiny_task(lm, MIXED)
    streamed = ((list(batch) for batch in own) for own in batches(SPLIT, size))  # generators will do
    found = compute_target(lm, task, list(streamed), done.append)
    assert done == [len(batch) for own in batches(SPLIT, size) for batch in own]
    for own, expected in zip(found.classes, compute_target(lm, task, batches(SPLIT, 5)).classes, strict=True):
        assert_same(own, expected)


def test_rows_of_like_length_go_through_the_model_together(tiny_lm, tiny_task, monkeypatch):
    lm = tiny_lm("phi")
    task, widths = tiny_task(lm), []
    own = type(task).collate
    monkeypatch.setattr(
        type(task),
        "collate",
        lambda self, ids, labels: widths.append(sorted(map(len, ids))) or own(self, ids, labels),
    )
    rows = ["a film " * n for n in (9, 1, 8, 2)]
    class_target(lm, task, 0, [rows], BatchLimit(2))
    assert len(widths) == 2 and widths[0][-1] < widths[1][0]


def test_target_carries_no_autograd_graph(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    target = compute_target(lm, tiny_task(lm, MIXED), batches(SPLIT, 5))
    values = [value for own in target.classes for value in own.tensors().values()]
    assert len(values) == (3 + 3 + 2) + 3 * 3, "of factors or dense, and of the rows' spread"
    assert not any(value.requires_grad or value.grad_fn for value in values)


def test_a_row_that_is_too_long_is_refused(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    task = tiny_task(lm)
    fits = next("a" * n for n in range(200, 0, -1) if len(task.text_ids("a" * n)) == task.room)
    compute_target(lm, task, [[["bad"]], [[fits]]])
    with pytest.raises(DataError) as caught:
        compute_target(lm, task, [[["bad"]], [["great"], ["fine", fits + "b", fits + "bcd"]]])
    assert str(caught.value) == (
        "a row of class 'class 1' has 126 tokens, and the model's context of 128 leaves room for 125: "
        f"'{'a' * 60}'...; shorten or drop such rows"
    )


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(2, 9), st.integers(2, 9))
def test_factors_are_held_while_they_are_smaller_than_the_matrix(pairs_of_batches, vocabulary, hidden):
    total, pairs = TargetAccumulator(), 0
    for seed, count in enumerate(pairs_of_batches):
        total.add(random_sum(seed, count, vocabulary, hidden), rows=1)
        pairs += count
        target = total.mean()
        numbers = sum(value.numel() for value in target.tensors().values())
        if pairs * (vocabulary + hidden) < vocabulary * hidden:
            assert target.dense is None and target.factors.weight_KJ.shape == (1, pairs)
            assert numbers < vocabulary * hidden + pairs
        else:
            assert target.factors is None and numbers == vocabulary * hidden + vocabulary


@pytest.mark.parametrize(("pairs", "is_dense"), [(2, False), (3, True)])
def test_the_switch_is_where_both_are_equal(pairs, is_dense):
    total = TargetAccumulator()
    total.add(random_sum(0, pairs, vocabulary=6, hidden=6), rows=1)  # 3 (6 + 6) = 6 * 6
    assert (total.mean().factors is None) == is_dense


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=9))
def test_mean_is_the_sum_over_the_rows(batches_of):
    total, sums, count = TargetAccumulator(), torch.zeros(7, 5), 0
    for seed, (pairs, rows) in enumerate(batches_of):
        total.add(random_sum(seed, pairs), rows)
        sums, count = sums + random_sum(seed, pairs).dense()[0][0], count + rows
        torch.testing.assert_close(total.mean().materialised()[0], sums / count, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mine_dense", "theirs_dense"), [(a, b) for a in (True, False) for b in (True, False)])
def test_inner_products_are_those_of_the_matrices(mine_dense, theirs_dense):
    (a, a_dense), (b, b_dense) = ((own, own.dense()) for own in (random_sum(1, 2), random_sum(2, 4)))
    mine = ClassTarget(None, (a_dense[0][0], a_dense[1][0])) if mine_dense else ClassTarget(a, None)
    theirs = ClassTarget(None, (b_dense[0][0], b_dense[1][0])) if theirs_dense else ClassTarget(b, None)
    found, norm, sets = mine.inner_with(theirs), theirs.square_norm(), theirs.inner(a)
    for inner_, (one, other) in (
        (found, (a_dense, b_dense)),
        (norm, (b_dense, b_dense)),
        (sets, (a_dense, b_dense)),
    ):
        torch.testing.assert_close(inner_.weight_K, (one[0] * other[0]).sum()[None], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(inner_.bias_K, (one[1] * other[1]).sum()[None], rtol=1e-4, atol=1e-4)


def test_what_is_in_the_matrix_is_held_no_longer():
    total, seen = TargetAccumulator(), []
    for seed in range(4):
        sums = random_sum(seed, 1, vocabulary=6, hidden=6)  # three pairs fill the matrix
        seen.append(weakref.ref(sums))
        total.add(sums, rows=1)
        del sums
        assert sum(ref() is not None for ref in seen) == (len(seen) if len(seen) < 3 else 0)


@pytest.mark.parametrize("dense", [False, True])
def test_tensors_come_back(tmp_path, dense):
    weight_1VD, bias_1V = random_sum(11, 2).dense()
    own = ClassTarget(None, (weight_1VD[0], bias_1V[0])) if dense else ClassTarget(random_sum(3, 4), None)
    save_file(own.tensors(), tmp_path / "target.safetensors")
    back = ClassTarget.from_tensors(load_file(tmp_path / "target.safetensors"))
    assert (back.factors is None) == dense and (back.dense is None) != dense
    for found, expected in zip(back.materialised(), own.materialised(), strict=True):
        assert torch.equal(found, expected)
    assert back.tensors().keys() == own.tensors().keys()


SPACES = [
    (),
    ("verbaliser",),
    ("centred",),
    ("whitened",),
    ("subspace",),
    ("sketch",),
    ("verbaliser", "whitened", "sketch", "centred"),
    ("verbalisers",),
    ("verbalisers", "whitened", "centred"),
]
"""Maps; first the loss, if it is the verbalisers'; last, whether the target is centred in the end."""
PUBLIC = ("I feel sad.", "A great end", "The story was dull and bad.", "Happy!")
BLOCKS = [["The film is great.", "Happy!"], ["I feel sad.", "A dull and bad film. It was bad."]]
"""Texts of class 2 and of class 0."""
in_every_space = pytest.mark.parametrize("names", SPACES, ids="-".join)


def space_of(lm: LanguageModel, task: BoundTask, names: tuple[str, ...]) -> Space:
    loss = with_added(task, random_added(task)) if "verbalisers" in names else VOCABULARY
    batch = task.collate([task.text_ids(text) for text in PUBLIC * 3], [0] * 4 + [1] * 4 + [2] * 4)
    public = label_factors(lm, batch, batch.embed(lm.embeddings_VE), len(PUBLIC) * 3, loss=loss)
    labels = [token for ids in task.label_ids for token in ids]
    config = SpaceConfig(maps=[name for name in names if name not in ("verbalisers", "centred")], rank=5)
    return fit_space(config, public, labels, torch.Generator().manual_seed(0), loss)


def target_in(lm: LanguageModel, task: BoundTask, names: tuple[str, ...]) -> ReleasedTarget:
    space = space_of(lm, task, names)
    target = compute_target(lm, task, batches(SPLIT, 4), space=space)
    assert target.space is space
    return target.centred() if "centred" in names else target


def mapped_oracle(lm, task, texts, label, space):
    """The materialised gradient of the space's loss, map by map."""
    if isinstance(space.loss, VerbaliserLoss):
        added: Added = random_added(task)
        weight_VD, bias_V = verbaliser_gradient(lm, task, texts, [label] * len(texts), added)
        weight_VD, bias_V = weight_VD[space.loss.tokens_M], bias_V[space.loss.tokens_M]
    else:
        weight_VD, bias_V = oracle(lm, task, texts, label)
    return oracles.mapped(space, weight_VD, bias_V)


@in_every_space
def test_target_in_a_space_is_the_mapped_mean_gradient(tiny_lm, tiny_task, names):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    target = target_in(lm, task, names)
    for label, (texts, own) in enumerate(zip(SPLIT, target.classes, strict=True)):
        expected = mapped_oracle(lm, task, texts, label, target.space)
        for found, other in zip(own.materialised(), expected, strict=True):
            assert oracles.relative_error(found, other) < 1e-4


def test_in_a_small_space_a_target_is_small(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    space = space_of(lm, task, ("verbaliser", "subspace"))
    for own in compute_target(lm, task, batches(SPLIT, 4), space=space).classes:
        spread = 1 + 2 + 5
        assert sum(value.numel() for value in own.tensors().values()) <= 5 * 5 + 5 + spread
    assert compute_target(lm, task, batches(SPLIT, 4)).space is IDENTITY


@in_every_space
@pytest.mark.parametrize(
    "config",
    [
        DistanceConfig(bias="separate"),
        DistanceConfig(name="relative_l2", bias="ignore"),
        DistanceConfig(name="tag"),
    ],
    ids=str,
)
def test_what_is_held_against_a_target_goes_to_its_space_first(tiny_lm, tiny_task, names, config):
    """ADMM's objective and score, and the measures, are distances between mapped gradients by autograd."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    target = target_in(lm, task, names)
    expected = [
        float(
            oracles.distance(
                config.name,
                config.bias,
                mapped_oracle(lm, task, texts, label, target.space),
                mapped_oracle(lm, task, SPLIT[label], label, target.space),
            )
        )
        for texts, label in ((BLOCKS[0], 2), (["The end"], 1), (BLOCKS[1], 0))
    ]
    assert min(expected) > 1e-3
    measured, *_ = measure(lm, task, target, config, [BLOCKS[1], ["The end"], BLOCKS[0]])
    assert list(measured.class_distances) == pytest.approx(expected[::-1], rel=1e-4, abs=1e-5)

    ids = [[task.text_ids(text) for text in block] for block in BLOCKS]
    lengths_KB = torch.tensor([[len(row) for row in block] for block in ids])
    codes_KBT = torch.zeros(2, 2, int(lengths_KB.max()), dtype=torch.long)
    for k, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        codes_KBT[k, b, : len(ids[k][b])] = torch.tensor(ids[k][b])
    problem = GradientMatching(lm, task, target, config, None, [2, 0], lengths_KB)
    x = lm.embeddings_VE[codes_KBT].requires_grad_()
    objective_K = problem.objective(x)
    for found_K in (objective_K, problem.score(codes_KBT)):
        assert found_K.tolist() == pytest.approx(expected[::2], rel=1e-4, abs=1e-5)
    objective_K.sum().backward()
    norms = x.grad.flatten(2).norm(dim=2)
    assert bool(norms.isfinite().all()) and bool((norms > 0).all())
