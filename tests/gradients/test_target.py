"""`gradmm.gradients.target`: the mean gradient per class, streamed, held as whatever is smaller, in any space.

What is held against a target (`measures.measure`, `solvers.matching`) is tested here in every space; in that of
the whole gradient by tests of its own.
"""

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
from gradmm.gradients.factors import Factors, label_factors
from gradmm.gradients.losses import VOCABULARY, VerbaliserLoss
from gradmm.gradients.spaces import IDENTITY, LinearMap, Space, SpaceConfig, fit_space
from gradmm.gradients.target import ClassTarget, ReleasedTarget, weighted_sum
from gradmm.measures import measure
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.solvers.matching import GradientMatching
from loss_oracles import Added, random_added, verbaliser_gradient, with_added

MIXED = (" bad", " happy", " surprised")
ENDS = ("is great.", "makes me sad", "was bad", "feel", "I", "is fine and great and so on")
TEXTS = tuple(
    f"{begin} {end}" for begin in ("The film", "A dull story", "A", "The end", "It", "I") for end in ENDS
)
SPLIT = [TEXTS[:5], TEXTS[5:8], TEXTS[8:]]
"""Rows of three classes. The tiny models hold fewer than 26 pairs as factors: the last class is held densely."""


def batches(split, size):
    return [[list(own[i : i + size]) for i in range(0, len(own), size)] for own in split]


def oracle(lm, task, texts, label):
    rows = [task.render(text, label) for text in texts]
    return oracles.materialised_head_gradient(lm, rows, [len(task.label_ids[label])] * len(rows))


def random_sum(seed: int, pairs: int, vocabulary: int = 7, hidden: int = 5) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    r_KJV, h_KJD = torch.randn(1, pairs, vocabulary, generator=draw), torch.randn(1, pairs, hidden, generator=draw)
    return Factors(r_KJV, h_KJD, torch.rand(1, pairs, generator=draw))


def assert_same(one: ClassTarget, other: ClassTarget) -> None:
    for found, expected in zip(one.materialised(), other.materialised(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---- what is computed


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


# ---- how it is held


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


# ---- the run folder


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


# ---- several classes

held_as = st.lists(st.booleans(), min_size=1, max_size=4)


def held(own: Factors, dense: bool) -> ClassTarget:
    weight_1VD, bias_1V = own.dense()
    return ClassTarget(None, (weight_1VD[0], bias_1V[0])) if dense else ClassTarget(own, None)


def released(held_densely: list[bool], seed: int = 0, space: Space = IDENTITY) -> ReleasedTarget:
    """Random means of unlike sizes; the hidden states have much in common."""
    classes = []
    for label, dense in enumerate(held_densely):
        r_KJV, h_KJD, weight_KJ = random_sum(seed + 1000 * label, 1 + (seed + label) % 4).tensors()
        classes.append(held(space(Factors(r_KJV, h_KJD + 2.0, weight_KJ)), dense))
    return ReleasedTarget(tuple(classes), space)


@given(st.data(), held_as, st.integers(0, 999))
def test_classes_together_have_the_mean_gradient_of_all_their_texts(data, held_densely, seed):
    """As a sum of matrices; factors where all are, and then those of every class."""
    target = released(held_densely, seed)
    classes = data.draw(st.lists(st.sampled_from(range(len(held_densely))), min_size=1, unique=True))
    size = st.integers(1, 50) | st.floats(0.1, 50)
    counts = data.draw(st.lists(size, min_size=len(classes), max_size=len(classes)))
    found, members = target.together(classes, counts), [target.classes[label] for label in classes]
    for at, part in enumerate(found.materialised()):
        sums = torch.zeros_like(part)
        for count, own in zip(counts, members, strict=True):
            sums += count * own.materialised()[at]
        torch.testing.assert_close(part, sums / sum(counts), rtol=1e-4, atol=1e-5)
    if any(held_densely[label] for label in classes):
        assert found.factors is None
    else:
        assert found.dense is None
        assert found.factors.weight_KJ.shape[1] == sum(own.factors.weight_KJ.shape[1] for own in members)


@pytest.mark.parametrize("dense", [False, True])
def test_a_class_alone_is_itself(dense):
    target = released([dense, not dense])
    assert target.together([0], [7]) is target.classes[0]
    doubled = weighted_sum(target.classes[:1], [2.0])
    for found, expected in zip(doubled.materialised(), target.classes[0].materialised(), strict=True):
        torch.testing.assert_close(found, 2 * expected)


def test_together_they_are_the_target_of_one_class_with_all_the_rows(tiny_lm, tiny_task):
    """Some of these classes are held as factors and one densely."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    target, counts = compute_target(lm, task, batches(SPLIT, 4)), [len(own) for own in SPLIT]
    found = target.together(range(3), counts).materialised()
    rows = [(task.render(text, label), label) for label, own in enumerate(SPLIT) for text in own]
    expected = oracles.materialised_head_gradient(
        lm, [row for row, _ in rows], [len(task.label_ids[label]) for _, label in rows]
    )
    for one, other in zip(found, expected, strict=True):
        assert oracles.relative_error(one, other) < 1e-5


# ---- centred


def centre_of(target: ReleasedTarget) -> torch.Tensor:
    """The m for which G = g m^T holds best for all classes, entry by entry, by least squares."""
    dense = [own.materialised() for own in target.classes]
    gradients_RD, biases_R1 = torch.cat([g for g, _ in dense]), torch.cat([b for _, b in dense]).unsqueeze(1)
    return torch.linalg.lstsq(biases_R1.double(), gradients_RD.double()).solution[0].float()


@given(held_as, st.integers(0, 999))
def test_centred_no_class_has_anything_left_of_what_all_have_in_common(held_densely, seed):
    target = released(held_densely, seed)
    found = target.centred()
    left, before = torch.zeros(5), 0.0
    for mine, own in zip(found.classes, target.classes, strict=True):
        (weight_VD, bias_V), (own_VD, own_V) = mine.materialised(), own.materialised()
        assert torch.equal(bias_V, own_V) and (mine.factors is None) == (own.factors is None)
        left, before = left + weight_VD.T @ bias_V, before + float((own_VD.T @ own_V).norm())
    assert float(left.norm()) < 1e-5 * before


@given(held_as, st.integers(0, 999))
def test_the_centre_leaves_least(held_densely, seed):
    """Each class is G - g m^T, with the m of least squares; any other m leaves more."""
    target = released(held_densely, seed)
    found, m_D = target.centred(), centre_of(target)
    torch.testing.assert_close(found.space.maps[-1].h_shift_D, m_D, rtol=1e-3, atol=1e-3)
    left, otherwise = 0.0, 0.0
    off_D = m_D + 0.1 * torch.randn(5, generator=torch.Generator().manual_seed(seed))
    for mine, own in zip(found.classes, target.classes, strict=True):
        weight_VD, bias_V = own.materialised()
        expected_VD = weight_VD - torch.outer(bias_V, m_D)
        torch.testing.assert_close(mine.materialised()[0], expected_VD, rtol=1e-3, atol=2e-3)
        left += float(mine.materialised()[0].square().sum())
        otherwise += float((weight_VD - torch.outer(bias_V, off_D)).square().sum())
    assert left < otherwise


@given(st.integers(1, 4), st.integers(0, 999))
def test_factors_and_matrices_are_centred_alike(classes, seed):
    factors, dense = released([False] * classes, seed).centred(), released([True] * classes, seed).centred()
    for one, other in zip(factors.classes, dense.classes, strict=True):
        assert_same(one, other)
    torch.testing.assert_close(factors.space.maps[0].h_shift_D, dense.space.maps[0].h_shift_D)


@given(held_as, st.integers(0, 999))
def test_once_centred_a_target_is_centred(held_densely, seed):
    once = released(held_densely, seed).centred()
    twice, own = once.centred(), random_sum(seed + 5, 3)
    for one, other in zip(twice.classes, once.classes, strict=True):
        assert_same(one, other)
    torch.testing.assert_close(twice.space(own).h_KJD, once.space(own).h_KJD, rtol=1e-4, atol=1e-4)


@given(held_as, st.integers(0, 999), st.booleans())
def test_the_space_of_a_centred_target_maps_sets_as_the_target_was(held_densely, seed, whitened):
    """After the maps that were there before; the loss stays. A gradient is at no distance from itself."""
    maps = [LinearMap(h_PD=torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))] if whitened else []
    space = Space(maps, VerbaliserLoss(*(torch.zeros(1),) * 3))
    plain = released(held_densely, seed, space)
    target, m_D, sets = plain.centred(), centre_of(plain), random_sum(seed + 5, 3)
    assert target.space.loss is space.loss and target.space.maps[:-1] == space.maps and plain.space is space
    (found_1VD, found_1V), (weight_1VD, bias_1V) = target.space(sets).dense(), space(sets).dense()
    expected_VD = weight_1VD[0] - torch.outer(bias_1V[0], m_D)
    torch.testing.assert_close(found_1VD[0], expected_VD, rtol=1e-3, atol=5e-3)
    assert torch.equal(found_1V, bias_1V)


def test_where_no_class_has_a_gradient_of_the_bias_there_is_nothing_to_take_off():
    own = random_sum(3, 4)
    zero = Factors(torch.zeros_like(own.r_KJV), own.h_KJD, own.weight_KJ)
    target = ReleasedTarget((held(zero, False), held(zero, True)))
    assert target.centred() is target


BINARY = (" very bad", " very great")
"""They part at their last token."""


@pytest.mark.parametrize("verbalisers", [(" bad", " great"), BINARY])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "phi"])
def test_the_centre_of_two_classes_is_the_mean_of_their_mean_hidden_states(
    tiny_lm, tiny_task, kind, verbalisers, calibrated
):
    """Texts count by |r|, how wrong the model is about them. The classes count alike where it is as wrong about
    the one as about the other, as it is on what it is calibrated on; else by the square of how wrong it is."""
    lm = tiny_lm(kind)
    task = tiny_task(lm, verbalisers)
    split, loss = [SPLIT[0], SPLIT[2]], VerbaliserLoss.of(task)
    tokens = loss.tokens_M.tolist()
    pair, place = [tokens.index(ids[-1]) for ids in task.label_ids], len(task.label_ids[0]) - 1
    hidden, logits = [list[torch.Tensor]() for _ in split], [list[torch.Tensor]() for _ in split]
    for label, texts in enumerate(split):
        for text in texts:
            ids = torch.tensor([task.render(text, label)])
            states_LD = lm.body(input_ids=ids).last_hidden_state[0, -place - 2 : -1].detach()
            hidden[label].append(states_LD[-1])
            logits[label].append(lm.model(input_ids=ids).logits[0, -place - 2 : -1, tokens].detach())
    if calibrated:
        loss = loss.calibrated(task, [torch.stack(own) for own in logits])
    means, wrong = [], []
    for label in range(2):
        bias_M, texts_h, texts_z = loss.bias_CLM[label, place], hidden[label], logits[label]
        r_N = torch.stack([torch.softmax((z_LM[-1] + bias_M)[pair], 0)[1 - label] for z_LM in texts_z])
        means.append((r_N[:, None] * torch.stack(texts_h)).sum(0) / r_N.sum())
        wrong.append(float(r_N.mean()))
    weights = [0.5, 0.5] if calibrated else [own**2 / sum(one**2 for one in wrong) for own in wrong]
    expected_D = weights[0] * means[0] + weights[1] * means[1]
    target = compute_target(lm, task, batches(split, 4), space=Space((), loss)).centred()
    assert oracles.relative_error(target.space.maps[-1].h_shift_D, expected_D) < 1e-4
    if calibrated:
        assert wrong[0] == pytest.approx(wrong[1], rel=1e-5)
    else:
        assert abs(weights[0] - 0.5) > 0.01, "the classes are not alike"


# ---- in a space

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
