"""Gradient matching as a problem for ADMM, against gradients by autograd of one text at a time."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from gradmm.data.vocabulary import allowed_tokens
from gradmm.decoding import PromptCache
from gradmm.gradients.distances import DistanceConfig
from gradmm.gradients.exact_target import compute_target
from gradmm.solvers.admm import Admm, AdmmConfig
from gradmm.solvers.matching import GradientMatching
from gradmm.solvers.projection import ProjectionConfig, Projector, Vocabulary
from solver_oracles import distance_slowly, mean_gradient, text_gradient

ROWS = [  # of the real data, per class
    ["The film is bad.", "A dull story with a bad end", "This makes me feel sad!"],
    ["The film is great.", "A fine story", "This makes me feel happy. I feel happy", "What a great end!"],
]
BLOCKS = [  # K = 3 blocks of B = 2 texts
    ["The film is a great story.", "Happy!"],
    ["I feel sad.", "A dull and bad film. It was bad."],
    ["Fine.", "The end makes me feel great."],
]
LABELS = [1, 0, 1]  # classes out of order, one of them twice
DISTANCES = [
    DistanceConfig(name=name, bias=bias)
    for name in ("cosine", "relative_l2", "tag")
    for bias in ("joint", "separate", "ignore")
]


@pytest.fixture
def matching(tiny_lm, tiny_task):
    """Builds (lm, task, problem for tokenised blocks, tokens as codes)."""

    def build(kind="phi", config=DISTANCES[0], tokenised=None, verbalisers=(" bad", " great")):
        lm = tiny_lm(kind)
        task = tiny_task(lm, verbalisers, "Review: {text} It was")
        ids = tokenised or [[task.text_ids(text) for text in block] for block in BLOCKS]
        target = compute_target(lm, task, [[own] for own in ROWS])
        lengths_KB = torch.tensor([[len(row) for row in block] for block in ids])
        codes_KBT = torch.zeros(*lengths_KB.shape, int(lengths_KB.max()), dtype=torch.long)
        for k, block in enumerate(ids):
            for b, row in enumerate(block):
                codes_KBT[k, b, : len(row)] = torch.tensor(row)
        problem = GradientMatching(lm, task, target, config, None, LABELS[: len(ids)], lengths_KB)
        return lm, task, problem, codes_KBT

    return build


def targets_slowly(lm, task):
    return [
        mean_gradient([text_gradient(lm, task, task.text_ids(text), label) for text in rows])
        for label, rows in enumerate(ROWS)
    ]


def distances_slowly(lm, task, config, gradients_of_blocks):
    targets, has_bias = targets_slowly(lm, task), lm.head.bias_V is not None
    return [
        distance_slowly(config, mean_gradient(gradients), targets[label], has_bias)
        for gradients, label in zip(gradients_of_blocks, LABELS, strict=False)
    ]


def of_texts(lm, task, blocks):
    return [
        [text_gradient(lm, task, task.text_ids(text), label) for text in block]
        for block, label in zip(blocks, LABELS, strict=False)
    ]


def of_vectors(lm, task, x_KBTE, lengths_KB):
    return [
        [
            text_gradient(lm, task, [], label, x_KBTE[k, b, : int(lengths_KB[k, b])])
            for b in range(lengths_KB.shape[1])
        ]
        for k, label in enumerate(LABELS)
    ]


def nearby(lm, codes_KBT):
    """Vectors that are no token's embedding, with values beyond the texts' ends too."""
    noise = torch.randn(*codes_KBT.shape, lm.embeddings_VE.shape[1], generator=torch.Generator().manual_seed(0))
    return lm.embeddings_VE[codes_KBT] + 0.3 * noise


@pytest.mark.parametrize("config", DISTANCES, ids=str)
def test_objective_is_the_distance_of_autograds_mean_gradient(matching, config):
    lm, task, problem, codes = matching("phi", config)
    assert lm.head.bias_V is not None, "phi is here for the bias"
    x = nearby(lm, codes)
    expected = distances_slowly(lm, task, config, of_vectors(lm, task, x, problem.lengths_KB))
    assert problem.objective(x).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "granite", "llama"])
def test_objective_and_score_for_other_heads_and_a_bos_token(matching, kind):
    lm, task, problem, codes = matching(kind)
    x = nearby(lm, codes)
    expected = distances_slowly(lm, task, problem.config, of_vectors(lm, task, x, problem.lengths_KB))
    assert problem.objective(x).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    expected = distances_slowly(lm, task, problem.config, of_texts(lm, task, BLOCKS))
    assert problem.score(codes).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_verbalisers_of_several_and_of_unlike_numbers_of_tokens(matching):
    lm, task, problem, codes = matching(verbalisers=(" very bad", " great"))
    assert len(task.label_ids[0]) > len(task.label_ids[1])
    x = nearby(lm, codes)
    expected = distances_slowly(lm, task, problem.config, of_vectors(lm, task, x, problem.lengths_KB))
    assert problem.objective(x).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_objective_on_token_embeddings_is_the_score_of_the_tokens(matching):
    lm, _, problem, codes = matching()
    assert problem.texts(codes) == [text for block in BLOCKS for text in block]
    torch.testing.assert_close(problem.objective(lm.embeddings_VE[codes]), problem.score(codes))


def test_codes_beyond_a_texts_end_are_not_in_the_text(matching):
    _, task, problem, codes = matching()
    inside = torch.arange(codes.shape[2]) < problem.lengths_KB.unsqueeze(-1)
    filled = torch.where(inside, codes, task.text_ids("film")[0])
    assert problem.texts(filled) == [text for block in BLOCKS for text in block]
    assert torch.equal(problem.score(filled), problem.score(codes))


def test_objective_of_the_demo_model(demo_lm, demo_task):
    ids = [demo_task.text_ids(text) for text in ("A fine film.", "Dull, dull, and far too long to sit through.")]
    target = compute_target(demo_lm, demo_task, [[own] for own in ROWS])
    width = max(map(len, ids))
    codes = torch.tensor([[[*row, *[0] * (width - len(row))] for row in ids]])
    problem = GradientMatching(
        demo_lm, demo_task, target, DistanceConfig(), None, [0], torch.tensor([[len(row) for row in ids]])
    )
    mine = mean_gradient([text_gradient(demo_lm, demo_task, row, 0) for row in ids])
    theirs = mean_gradient([text_gradient(demo_lm, demo_task, demo_task.text_ids(text), 0) for text in ROWS[0]])
    expected = distance_slowly(DistanceConfig(), mine, theirs, has_bias=False)
    assert problem.objective(demo_lm.embeddings_VE[codes]).tolist() == pytest.approx([expected], rel=1e-4)
    assert problem.score(codes).tolist() == pytest.approx([expected], rel=1e-4)


def test_nothing_beyond_a_texts_end_counts(matching):
    lm, _, problem, codes = matching()
    inside = torch.arange(codes.shape[2]) < problem.lengths_KB.unsqueeze(-1)
    assert not inside.all()
    x = nearby(lm, codes).requires_grad_()
    values_K = problem.objective(x)
    values_K.sum().backward()
    assert bool((x.grad[~inside] == 0).all())
    assert bool((x.grad[inside] != 0).any(-1).all()), "every token inside has a part in it"
    elsewhere = torch.where(inside.unsqueeze(-1), x.detach(), 1e6)
    assert torch.equal(problem.objective(elsewhere), values_K.detach())


def test_the_slope_is_that_of_finite_differences(matching):
    lm, _, problem, codes = matching()
    x = nearby(lm, codes).requires_grad_()
    problem.objective(x).sum().backward()
    slope = x.grad
    step = 1e-2 * slope / slope.norm()
    with torch.no_grad():
        up, down = problem.objective(x + step).sum(), problem.objective(x - step).sum()
    assert float(up - down) == pytest.approx(2e-2 * float(slope.norm()), rel=2e-2)


def test_blocks_do_not_touch_each_other(matching):
    lm, task, problem, codes = matching()
    x = nearby(lm, codes)
    for k in range(3):
        one, lengths_1B = slice(k, k + 1), problem.lengths_KB[k : k + 1]
        width = int(lengths_1B.max())
        alone = GradientMatching(lm, task, problem.target, problem.config, None, LABELS[one], lengths_1B)
        value, score = alone.objective(x[one, :, :width]), alone.score(codes[one, :, :width])
        torch.testing.assert_close(value, problem.objective(x)[one], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(score, problem.score(codes)[one], rtol=1e-5, atol=1e-6)


def test_score_is_that_of_the_text_where_its_tokens_do_not_come_back(matching, tiny_lm, tiny_task):
    lm = tiny_lm("phi")
    task = tiny_task(lm, template="Review: {text} It was")
    letters = [[task.text_ids(char)[-1] for char in "great"], task.text_ids("The film")]
    _, task, problem, codes = matching("phi", tokenised=[letters, letters])
    texts = [task.decode(row) for row in letters]
    assert texts == problem.texts(codes)[:2]
    assert task.text_ids(texts[0]) != letters[0], "these letters are one token, or two, when read again"
    score = problem.score(codes).tolist()
    as_read = distances_slowly(lm, task, problem.config, of_texts(lm, task, [texts, texts]))
    assert score == pytest.approx(as_read, rel=1e-4, abs=1e-5)
    as_written = problem.objective(lm.embeddings_VE[codes]).tolist()
    assert score[0] != pytest.approx(as_written[0], rel=1e-2)


def test_projection_gives_embeddings_with_their_tokens(matching):
    lm, _, problem, codes = matching()
    seen = {}

    def projector(vectors_NTE, lengths_N, labels_N):
        seen.update(vectors=vectors_NTE, lengths=lengths_N.tolist(), labels=labels_N.tolist())
        return codes.flatten(0, 1)

    problem.projector = projector
    v = nearby(lm, codes)
    z, found = problem.project(v)
    assert torch.equal(found, codes)
    inside = torch.arange(codes.shape[2]) < problem.lengths_KB.unsqueeze(-1)
    assert torch.equal(z[inside], lm.embeddings_VE[codes[inside]])
    assert not z[~inside].any(), "beyond a text's end nothing may enter residuals and clipping"
    assert torch.equal(seen["vectors"], v.flatten(0, 1))
    assert seen["labels"] == [1, 1, 0, 0, 1, 1]
    assert seen["lengths"] == problem.lengths_KB.flatten().tolist()


@pytest.mark.parametrize("clip", ["text", "block"])
def test_admm_on_ragged_blocks_is_admm_on_each_without_padding(matching, clip):
    lm, task, problem, codes = matching()
    vocabulary = Vocabulary(allowed_tokens(lm.tokenizer, lm.vocab_size), None, None)
    prompts = PromptCache(lm, task.instruction_ids)
    projector = Projector(prompts, lm.embeddings_VE, vocabulary, ProjectionConfig(nearness=3.0))
    config = AdmmConfig(n_inner=3, rho=0.5, clip=clip, max_grad_norm=0.01, rho_schedule="residual_balanced")

    def solve(labels, lengths_KB, x):
        one = GradientMatching(lm, task, problem.target, problem.config, projector, labels, lengths_KB)
        solver = Admm(one, config)
        return solver.step(solver.step(solver.init(x))), one.texts

    inside = (torch.arange(codes.shape[2]) < problem.lengths_KB.unsqueeze(-1)).unsqueeze(-1)
    x = nearby(lm, codes) * inside
    together, texts = solve(LABELS, problem.lengths_KB, x)
    assert not (together.x * ~inside).any()
    for k in range(3):
        own = slice(k, k + 1)
        width = int(problem.lengths_KB[k].max())
        alone, texts_of = solve(LABELS[own], problem.lengths_KB[own], x[own, :, :width])
        assert texts(together.codes)[2 * k : 2 * k + 2] == texts_of(alone.codes)
        for name in ("rho_K", "objective_K", "primal_K", "dual_residual_K", "score_K"):
            torch.testing.assert_close(getattr(together, name)[own], getattr(alone, name), rtol=1e-3, atol=1e-5)


class Waits(TorchDispatchMode):
    """Operators that need a number on the host, or bring one from there: each makes a GPU wait."""

    names = ("aten._local_scalar_dense", "aten.nonzero", "aten.lift_fresh", "aten.masked_select")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).rpartition(".")[0] in self.names:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["phi", "llama", "gpt2"])
def test_an_inner_step_asks_nothing_of_the_host(matching, monkeypatch, kind):
    """But for transformers' own look for packed sequences, of which there are none."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    lm, _, problem, codes_KBT = matching(kind)
    x = lm.embeddings_VE[codes_KBT].clone().requires_grad_()
    with Waits() as waits:
        torch.autograd.grad(problem.objective(x).sum(), x)
    assert waits.found == []
    with Waits() as waits:  # it does see them
        x[[0, 1]].sum().item()
    assert set(waits.found) == {"aten.lift_fresh.default", "aten._local_scalar_dense.default"}
