"""`gradmm.gradients.losses`: the verbalisers' loss against autograd's, and what calibration promises."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import oracles
from gradmm.blocks import BlockRunner
from gradmm.config import GenerateConfig
from gradmm.data.task import Batch, BoundTask, Task
from gradmm.gradients.factors import Factors, inner, label_factors
from gradmm.gradients.losses import VOCABULARY, Loss, VerbaliserLoss
from gradmm.gradients.spaces import IDENTITY, LinearMap, Space, SpaceConfig, fit_space
from gradmm.heads import Head
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.search import Search
from loss_oracles import (
    following,
    label_loss,
    random_added,
    starts_of,
    verbaliser_gradient,
    with_added,
)
from tiny_models import ROWS, make_tokenizer

TEXTS = ("A film.", "The story is dull and bad, and the film makes me sad.", "happy", "A great end. I feel fine")
LABELS = (2, 0, 1, 1)
SINGLE = (" bad", " great", " end")
MIXED = (" bad", " happy", " surprised")
"""Of one, two and eight tokens, each with a first token of its own."""
ALIKE = (" very bad", " very great", " good")
"""All begin with the same token, two with the same five; the third is the shorter one."""
WORDS = [SINGLE, MIXED, ALIKE]
each_words = pytest.mark.parametrize("words", WORDS, ids=["single", "mixed", "alike"])
HIDDEN = 6


def bind(words: tuple[str, ...]) -> BoundTask:
    names = tuple(f"class {c}" for c in range(len(words)))
    task = Task(label_names=names, verbalisers=words, template="{text} It was")
    return BoundTask(task, make_tokenizer(), 128)


TASKS = [bind(words) for words in WORDS]
tasks, seeds = st.sampled_from(TASKS), st.integers(0, 999)


def batch_of(task: BoundTask, texts=TEXTS, labels=LABELS) -> Batch:
    return task.collate([task.text_ids(text) for text in texts], labels)


def factors_of(lm: LanguageModel, batch: Batch, loss: Loss, texts_per_set: int = 1) -> Factors:
    return label_factors(lm, batch, batch.embed(lm.embeddings_VE), texts_per_set, loss=loss)


def only(rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The rows of some tokens, all others being zero."""
    others = torch.ones(len(rows), dtype=torch.bool)
    others[tokens] = False
    assert not rows[others].any(), "autograd has the same to say of all other rows"
    return rows[tokens]


# ---- its gradient


def test_the_words_of_these_tests_are_what_they_are_said_to_be():
    single, mixed, alike = (task.label_ids for task in TASKS)
    assert [len(ids) for ids in single] == [1, 1, 1]
    assert [len(ids) for ids in mixed] == [1, 2, 8] and len({ids[0] for ids in mixed}) == 3
    assert alike[0][:5] == alike[1][:5] and alike[0][5] != alike[1][5]
    assert alike[2][0] == alike[0][0] and alike[2][1] != alike[0][1] and len(alike[2]) < 6


@pytest.mark.parametrize("kind", ["gpt2", "phi", "ctrl", "gemma2", "granite", "cohere", "llama"])
@each_words
def test_factors_of_the_verbalisers_loss_are_the_gradient_that_autograd_finds(tiny_lm, tiny_task, kind, words):
    """Heads with a bias (phi, ctrl), a soft cap (gemma2) and a scale (granite, cohere); a BOS token."""
    lm = tiny_lm(kind)
    task = tiny_task(lm, words)
    added = random_added(task)
    loss = with_added(task, added)
    weight_KMD, bias_KM = factors_of(lm, batch_of(task), loss, 2).dense()
    assert weight_KMD.shape == (2, loss.size(lm.head), 32) and loss.size(lm.head) == len(loss.tokens_M)
    for k in range(2):
        own = slice(2 * k, 2 * k + 2)
        weight_VD, bias_V = verbaliser_gradient(lm, task, TEXTS[own], LABELS[own], added)
        assert oracles.relative_error(weight_KMD[k], only(weight_VD, loss.tokens_M)) < 1e-5
        assert oracles.relative_error(bias_KM[k], only(bias_V, loss.tokens_M)) < 1e-5


def test_the_bias_of_a_calibration_is_seen_by_these_tests(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    task = tiny_task(lm, ALIKE)
    with_bias, without = (with_added(task, added) for added in (random_added(task), {}))
    weights = [factors_of(lm, batch_of(task), loss, 4).dense()[0] for loss in (with_bias, without)]
    assert oracles.relative_error(*weights) > 0.1
    assert all(map(torch.equal, vars(without).values(), vars(VerbaliserLoss.of(task)).values()))


@st.composite
def heads(draw):
    """Any bias, scale and cap; the logits are some units apart."""
    seed, scale, cap = draw(seeds), draw(st.sampled_from([1.0, 0.3, 2.5])), draw(st.sampled_from([None, 0.7, 8.0]))
    generator = torch.Generator().manual_seed(seed)
    weight_VD = torch.randn(ROWS, HIDDEN, generator=generator)
    bias_V = torch.randn(ROWS, generator=generator) if draw(st.booleans()) else None
    return Head(weight_VD, bias_V, scale, cap)


@given(tasks, heads(), seeds, st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_residual_is_the_derivative_of_the_loss_by_what_the_head_adds_up(task, head, seed, labels):
    """Whatever the classes in a batch: in one of short verbalisers alone there are fewer places."""
    added = random_added(task, seed)
    loss, batch = with_added(task, added), batch_of(task, ["A film"] * len(labels), labels)
    places = batch.label_ids_NL.shape[1]
    h_NLD = torch.randn(len(labels), places, HIDDEN, generator=torch.Generator().manual_seed(seed))
    found_NLM = loss.residual(head, h_NLD, batch)
    assert found_NLM.shape == (len(labels), places, len(loss.tokens_M)) and found_NLM.dtype == torch.float32
    assert bool(found_NLM.isfinite().all()), "at no place, padding or not"
    for n, label in enumerate(labels):
        own = len(task.label_ids[label])
        bias_LV = torch.zeros(own, ROWS) if head.bias_V is None else head.bias_V.expand(own, ROWS)
        z_LV = (h_NLD[n, :own] @ head.weight_VD.T + bias_LV).detach().requires_grad_()
        logits_LV = head.scale * z_LV
        if head.cap is not None:
            logits_LV = head.cap * torch.tanh(logits_LV / head.cap)
        (expected_LV,) = torch.autograd.grad(label_loss(task, label, logits_LV, added), z_LV)
        for place in range(own):
            expected_M = only(expected_LV[place], loss.tokens_M)
            torch.testing.assert_close(found_NLM[n, place], expected_M, rtol=1e-4, atol=1e-5)


@each_words
def test_shorter_verbalisers_are_padded_with_nothing(tiny_lm, tiny_task, words):
    """Alone, a text has its own places only; in a batch, what stands at the others is never looked at."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, words)
    loss = with_added(task, random_added(task))
    batch = batch_of(task)
    together = factors_of(lm, batch, loss)
    assert all(bool(value.isfinite().all()) for value in together.tensors())
    for n, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
        alone = factors_of(lm, batch_of(task, [text], [label]), loss)
        assert alone.weight_KJ.shape == (1, len(task.label_ids[label]))
        for found, expected in zip(together.sets([n]).dense(), alone.dense(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for token in (0, int(loss.tokens_M[1]), ROWS - 1):
        label_ids_NL = batch.label_ids_NL.masked_fill(batch.label_mask_NL == 0, token)
        other = factors_of(lm, dataclasses.replace(batch, label_ids_NL=label_ids_NL), loss)
        assert all(bool(value.isfinite().all()) for value in other.tensors())
        assert all(map(torch.equal, other.dense(), together.dense()))


@each_words
def test_gradients_flow_back_to_the_texts(tiny_lm, tiny_task, words):
    """They are finite, by the tokens that may not stand at a place too, and the same in parts."""
    lm = tiny_lm("gemma2")
    task = tiny_task(lm, words)
    loss, batch = with_added(task, random_added(task)), batch_of(task)
    found = []
    for limit in (None, BatchLimit(3), BatchLimit(1)):
        embeds_NSE = batch.embed(lm.embeddings_VE).requires_grad_()
        mine = label_factors(lm, batch, embeds_NSE, 2, limit, loss)
        found.append(torch.autograd.grad(inner(mine, mine).weight_K.sum(), embeds_NSE)[0])
        assert bool(found[-1].isfinite().all())
        assert bool((found[-1].flatten(1).norm(dim=1) > 0).all())
        assert oracles.relative_error(found[-1], found[0]) < 1e-4


def test_only_the_rows_of_the_verbalisers_are_looked_at(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    loss = VerbaliserLoss.of(task)
    others = torch.ones(ROWS, dtype=torch.bool)
    others[loss.tokens_M] = False
    other = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():
        other.model.get_output_embeddings().weight[others] += 5.0
    found, expected = (factors_of(one, batch_of(task), loss, 4).dense() for one in (other, lm))
    assert all(map(torch.equal, found, expected))


def test_in_bfloat16_the_factors_are_float32(tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    loss = with_added(task, random_added(task))
    half = LanguageModel(copy.deepcopy(lm.model).to(torch.bfloat16), lm.tokenizer)
    exact, found = (factors_of(one, batch_of(task), loss, 4) for one in (lm, half))
    assert {value.dtype for value in vars(found).values()} == {torch.float32}
    assert 0 < oracles.relative_error(found.dense()[0], exact.dense()[0]) < 0.1


# ---- calibration


def public_logits(task: BoundTask, loss: VerbaliserLoss, seed: int, spread: float) -> list[torch.Tensor]:
    """Per class, of unlike numbers of texts: common preferences, and others of every text (N, L, M)."""
    draw = torch.Generator().manual_seed(seed)
    shape, common_M = loss.bias_CLM.shape[1:], torch.randn(len(loss.tokens_M), generator=draw)
    return [
        spread * (common_M + 0.5 * torch.randn(1 + (seed + 2 * label) % 7, *shape, generator=draw))
        for label in range(len(task.label_ids))
    ]


def probabilities(task: BoundTask, loss: VerbaliserLoss, logits_NLM: torch.Tensor, label: int) -> torch.Tensor:
    """Of the tokens at the label places of texts of a class, read off the residual (N, L, M)."""
    batch = batch_of(task, ["A film"] * len(logits_NLM), [label] * len(logits_NLM))
    tokens, own = loss.tokens_M.tolist(), task.label_ids[label]
    head = Head(torch.zeros(ROWS, len(tokens)).index_put((loss.tokens_M,), torch.eye(len(tokens))), None)
    found_NLM = loss.residual(head, logits_NLM[:, : len(own)], batch)
    onehot_LM = torch.eye(len(tokens))[[tokens.index(token) for token in own]]
    return found_NLM + onehot_LM


def mean_probability(
    task: BoundTask, loss: VerbaliserLoss, logits: list[torch.Tensor], start: tuple[int, ...], token: int
) -> float:
    """Of a token after a start, over the texts of the classes that begin so, the classes weighted alike."""
    m, means = loss.tokens_M.tolist().index(token), []
    for label, ids in enumerate(task.label_ids):
        if tuple(ids[: len(start)]) == start:
            means.append(float(probabilities(task, loss, logits[label], label)[:, len(start), m].mean()))
    return sum(means) / len(means)


def share(task: BoundTask, start: tuple[int, ...], token: int) -> float:
    """Of the classes that begin so, those that go on with the token."""
    begun = [tuple(ids) for ids in task.label_ids if tuple(ids[: len(start)]) == start]
    return sum(ids[len(start)] == token for ids in begun) / len(begun)


@given(tasks, seeds, st.sampled_from([0.1, 1.0, 4.0]))
def test_calibrated_every_class_is_as_probable_as_every_other_on_public_text(task, seed, spread):
    plain = VerbaliserLoss.of(task)
    logits = public_logits(task, plain, seed, spread)
    loss = plain.calibrated(task, logits)
    for start in starts_of(task):
        for token in following(task, start):
            assert mean_probability(task, loss, logits, start, token) == pytest.approx(
                share(task, start, token), abs=1e-5
            )
    assert torch.equal(loss.tokens_M, plain.tokens_M) and torch.equal(loss.allowed_CLM, plain.allowed_CLM)
    assert loss.bias_CLM.dtype == torch.float32


def test_without_calibration_they_are_not():
    """So the test above sees something; and what is alike for all texts is gone altogether."""
    task = TASKS[0]
    plain = VerbaliserLoss.of(task)
    logits = [torch.tensor([3.0, 0.0, -1.0]).expand(2, 1, 3) for _ in range(3)]
    loss, token = plain.calibrated(task, logits), int(plain.tokens_M[0])
    assert mean_probability(task, plain, logits, (), token) > 0.9
    for own_NLM in logits:
        torch.testing.assert_close(probabilities(task, loss, own_NLM, 0), torch.full((2, 1, 3), 1 / 3))


@given(tasks, seeds)
def test_classes_that_begin_alike_have_the_same_calibration_there(task, seed):
    plain = VerbaliserLoss.of(task)
    bias_CLM = plain.calibrated(task, public_logits(task, plain, seed, 2.0)).bias_CLM
    for start in starts_of(task):
        alike = [c for c, ids in enumerate(task.label_ids) if tuple(ids[: len(start)]) == start]
        assert all(torch.equal(bias_CLM[c, len(start)], bias_CLM[alike[0], len(start)]) for c in alike)


@given(tasks, seeds, st.sampled_from([1.0, 10.0, 100.0]))
def test_a_constant_for_every_token_is_calibrated_away(task, seed, size):
    plain = VerbaliserLoss.of(task)
    logits = public_logits(task, plain, seed, 1.0)
    constant_M = size * torch.randn(len(plain.tokens_M), generator=torch.Generator().manual_seed(seed))
    more = [own_NLM.double() + constant_M for own_NLM in logits]
    before, after = plain.calibrated(task, logits), plain.calibrated(task, more)
    for label, (one_NLM, other_NLM) in enumerate(zip(logits, more, strict=True)):
        expected = probabilities(task, before, one_NLM, label)
        found = probabilities(task, after, other_NLM.float(), label)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * size)


@settings(max_examples=30)  # each takes long: calibration goes on until nothing moves
@given(tasks, seeds, st.sampled_from([50.0, 300.0, 2000.0]))
def test_extreme_logits_stay_finite(task, seed, spread):
    plain = VerbaliserLoss.of(task)
    logits = public_logits(task, plain, seed, spread)
    loss = plain.calibrated(task, logits)
    assert bool(loss.bias_CLM.isfinite().all())
    for label, own_NLM in enumerate(logits):
        assert bool(probabilities(task, loss, own_NLM, label).isfinite().all())


@pytest.mark.parametrize("counts", [(3, 1), (1, 3), (1, 1), (6, 4)])
def test_texts_that_are_50_apart_are_calibrated_too(counts):
    """Some texts of each class are sure of the first word and some of the second."""
    task = bind((" bad", " great"))
    plain = VerbaliserLoss.of(task)
    own_NLM = torch.tensor([[[50.0, 0.0]]] * counts[0] + [[[0.0, 50.0]]] * counts[1])
    loss = plain.calibrated(task, [own_NLM, own_NLM])
    for token in following(task, ()):
        assert mean_probability(task, loss, [own_NLM, own_NLM], (), token) == pytest.approx(0.5, abs=1e-4)


def test_a_space_is_fitted_with_a_loss_that_is_calibrated_on_what_the_lm_wrote(tiny_lm, tiny_task):
    """Text by text, through the whole model: at every place the mean of a token's probability is its share."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, (" very bad", " very great", " bad end", " bad story"))
    config = GenerateConfig.model_validate({"texts_per_class": 1, "lengths": {"min_tokens": 3, "max_tokens": 9}})
    public = [TEXTS[:2], TEXTS[1:4], TEXTS[3:], TEXTS[:1]]
    space = Search(BlockRunner(lm, task, config)).public.fit_space(public)
    assert isinstance(space.loss, VerbaliserLoss) and len(space.maps) == 1
    tokens, parted = space.loss.tokens_M.tolist(), 0
    for start in starts_of(task):
        at, means = [tokens.index(token) for token in following(task, start)], []
        for label, texts in enumerate(public):
            if tuple(task.label_ids[label][: len(start)]) != start:
                continue
            bias_M, own = space.loss.bias_CLM[label, len(start), at], []
            for text in texts:
                row = task.render(text, label)
                before = row[: len(row) - len(task.label_ids[label]) + len(start)]
                logits_V = lm.model(input_ids=torch.tensor([before])).logits[0, -1].float().detach()
                own.append(torch.softmax(logits_V[space.loss.tokens_M[at]] + bias_M, 0))
            means.append(torch.stack(own).mean(0))
        expected = [share(task, start, token) for token in following(task, start)]
        torch.testing.assert_close(torch.stack(means).mean(0), torch.tensor(expected), rtol=1e-3, atol=1e-4)
        parted += len(expected) > 1
    assert parted == 3, "where all begin, and in either half"


# ---- the run folder


@pytest.mark.parametrize(
    "maps",
    [(), ("whitened",), ("verbaliser", "contrasts", "whitened"), ("verbaliser", "whitened", "sketch"), "shifted"],
)
@each_words
def test_a_space_comes_back_with_its_loss(tmp_path, tiny_lm, tiny_task, words, maps):
    lm = tiny_lm("phi")
    task = tiny_task(lm, words)
    loss = VerbaliserLoss.of(task)
    loss = loss.calibrated(task, public_logits(task, loss, 5, 2.0))
    batch = batch_of(task)
    public, labels = factors_of(lm, batch, loss), range(len(loss.tokens_M))
    if maps == "shifted":
        space = Space((), loss).then(LinearMap(h_shift_D=torch.ones(32))).then(LinearMap(h_PD=torch.ones(3, 32)))
    else:
        space = fit_space(SpaceConfig(maps=maps, rank=2), public, labels, torch.Generator().manual_seed(0), loss)
    assert space.loss is loss
    save_file(space.tensors(), tmp_path / "space.safetensors")
    back = Space.from_tensors(load_file(tmp_path / "space.safetensors"))
    assert isinstance(back.loss, VerbaliserLoss) and len(back.maps) == len(space.maps)
    for name, value in vars(loss).items():
        assert torch.equal(vars(back.loss)[name], value) and vars(back.loss)[name].dtype == value.dtype
    embeds_NSE = batch.embed(lm.embeddings_VE)
    for found, expected in zip(
        back.factors(lm, batch, embeds_NSE, 2).tensors(),
        space(factors_of(lm, batch, loss, 2)).tensors(),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_a_space_of_the_whole_vocabulary_comes_back_as_such():
    for space in (IDENTITY, IDENTITY.then(LinearMap(h_shift_D=torch.ones(4)))):
        back = Space.from_tensors(space.tensors())
        assert back.loss == VOCABULARY and len(back.maps) == len(space.maps)
    assert VOCABULARY.size(Head(torch.zeros(7, 3), None)) == 7
