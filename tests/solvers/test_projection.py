"""Projection onto readable text, against loops over every token and whole forward passes."""

import math

import pytest
import torch
import transformers

from gradmm.data.vocabulary import allowed_tokens, bare_starts, sentence_ends
from gradmm.decoding import PromptCache
from gradmm.models import LanguageModel
from gradmm.solvers.projection import ProjectionConfig, Projector, Vocabulary
from solver_oracles import candidates, half_squared_distance, next_logits, project_slowly, proximal_worth

ORDERS = ("proximal", "nearest_then_probable", "probable_then_nearest")
METRICS = ("cosine", "euclidean")
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [3, 2, 9]]
LABELS, LENGTHS = [0, 1, 2, 1, 0], [6, 2, 4, 1, 5]


@pytest.fixture(scope="module")
def small_lm():
    """A GPT-2 of twenty tokens, of which nobody needs to know the words."""
    config = transformers.GPT2Config(
        **{"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        **{"initializer_range": 0.4, "bos_token_id": 0, "eos_token_id": 0},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LanguageModel(transformers.GPT2LMHeadModel(config), tokenizer=None)


def settings(**changes):
    return ProjectionConfig(**{"order": "proximal", "nearness": 3.0, **changes})


def marks(size, tokens):
    mask_V = torch.zeros(size, dtype=torch.bool)
    mask_V[list(tokens)] = True
    return mask_V


def vectors_for(lm, config, texts=len(LABELS), width=max(LENGTHS)):
    """Between tokens: some near one, some near none."""
    generator = torch.Generator().manual_seed(1)
    picked = lm.embeddings_VE[torch.randint(0, 20, (texts, width), generator=generator)]
    noise = picked.std() * torch.randn(picked.shape, generator=generator)
    vectors = picked + torch.linspace(0, 1.5, width)[None, :, None] * noise
    # The weight of a cosine against a probability is a test of its own, below.
    return vectors / vectors.norm(dim=-1, keepdim=True) if config.metric == "cosine" else vectors


def project(lm, prompts, config, vocabulary, vectors, lengths, labels):
    projector = Projector(PromptCache(lm, prompts), lm.embeddings_VE, vocabulary, config)
    tokens = projector(vectors, torch.tensor(lengths), torch.tensor(labels))
    return [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]


def chosen(lm, config, ends=None, starts=None):
    allowed_V = marks(20, set(range(20)) - {0, 11, 15})
    vectors = vectors_for(lm, config)
    fast = project(lm, PROMPTS, config, Vocabulary(allowed_V, ends, starts), vectors, LENGTHS, LABELS)
    slow = project_slowly(lm, PROMPTS, vectors, LENGTHS, LABELS, config, allowed_V, ends, starts)
    return fast, slow, vectors, allowed_V


STARTS = (marks(20, [2, 4, 6, 8, 11]), torch.tensor([0, 1, 3, 3, 5, 5, 7, 7, 15, *range(9, 20)]))


@pytest.mark.parametrize("starts", [None, STARTS], ids=["anywhere", "starts"])
@pytest.mark.parametrize("ends", [None, marks(20, [11, 17, 19])], ids=["open", "ends"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("order", "k"), [("proximal", 4), *((order, k) for order in ORDERS[1:] for k in (1, 4, 200))]
)  # without a short list its length is of no account
def test_is_the_uncached_unbatched_projection(small_lm, order, metric, k, ends, starts):
    fast, slow, *_ = chosen(small_lm, settings(order=order, metric=metric, k=k), ends, starts)
    assert fast == slow


@pytest.mark.parametrize("order", ORDERS)
def test_is_the_uncached_unbatched_projection_for_the_demo_model(demo_lm, demo_task, order):
    allowed_V = allowed_tokens(demo_lm.tokenizer, demo_lm.vocab_size)
    ends_V = sentence_ends(demo_lm.tokenizer, demo_lm.vocab_size)
    starts = bare_starts(demo_lm.tokenizer, demo_lm.vocab_size)
    prompts = [*demo_task.instruction_ids, demo_task.instruction_ids[0][:3]]
    config = settings(order=order, k=20)
    texts = ["The plot is thin.", "A great film!", "I liked it."]
    ids = [demo_task.text_ids(text) for text in texts]
    own = {token for row in ids for token in row}
    allowed_V &= marks(demo_lm.vocab_size, own | set(range(0, demo_lm.vocab_size, 20)))  # all take long
    lengths = [len(row) for row in ids]
    noise = torch.randn(
        3, max(lengths), demo_lm.embeddings_VE.shape[1], generator=torch.Generator().manual_seed(0)
    )
    vectors = demo_lm.embeddings_VE.std() * noise
    for row, own in enumerate(ids):
        vectors[row, : len(own)] += demo_lm.embeddings_VE[own]
    arguments = (vectors, lengths, [1, 0, 2], config, allowed_V, ends_V, starts)
    fast = project(demo_lm, prompts, config, Vocabulary(allowed_V, ends_V, starts), vectors, lengths, [1, 0, 2])
    assert fast == project_slowly(demo_lm, prompts, *arguments)
    assert all(bool(ends_V[row[-1]]) and bool(starts[0][row[0]]) for row in fast)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_choice_is_the_best_of_all_tokens(small_lm, order, metric):
    config = settings(order=order, metric=metric, k=5)
    fast, _, vectors, allowed_V = chosen(small_lm, config)
    for row, (text, label) in enumerate(zip(fast, LABELS, strict=True)):
        for t, token in enumerate(text):
            logp = torch.log_softmax(next_logits(small_lm, [*PROMPTS[label], *text[:t]]).double(), -1).tolist()
            far = [half_squared_distance(metric, vectors[row, t], e) for e in small_lm.embeddings_VE]
            others = candidates(t, len(text), allowed_V, None, None)
            assert token in others
            nearer = [j for j in others if far[j] < far[token]]
            likelier = [j for j in others if logp[j] > logp[token]]
            if order == "proximal":
                worth = [proximal_worth(config, far[j], logp[j]) for j in range(20)]
                assert worth[token] == max(worth[j] for j in others)
            elif order == "nearest_then_probable":
                assert len(nearer) < 5, "it is one of the five nearest"
                assert all(sum(far[i] < far[j] for i in others) >= 5 for j in likelier), "likelier ones are not"
            else:
                assert len(likelier) < 5, "it is one of the five most probable"
                assert all(sum(logp[i] > logp[j] for i in others) >= 5 for j in nearer), "nearer ones are not"


def test_the_orders_differ(small_lm):
    results = [chosen(small_lm, settings(order=order, metric="euclidean", k=5))[0] for order in ORDERS]
    assert results[0] != results[1] != results[2] != results[0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("metric", METRICS)
def test_output_is_allowed_and_ends_a_sentence(tiny_lm, order, metric):
    lm = tiny_lm("llama")
    allowed_V, ends_V = allowed_tokens(lm.tokenizer, lm.vocab_size), sentence_ends(lm.tokenizer, lm.vocab_size)
    starts = bare_starts(lm.tokenizer, lm.vocab_size)
    lengths, labels = [2, 3, 4, 5, 6, 7] * 3, [0, 1, 2] * 6
    vectors = torch.randn(18, 7, 32, generator=torch.Generator().manual_seed(2))
    vocabulary = Vocabulary(allowed_V, ends_V, starts)
    config = settings(order=order, metric=metric, k=3)
    for text in project(lm, PROMPTS, config, vocabulary, vectors, lengths, labels):
        assert all(allowed_V[token] for token in text)
        assert ends_V[text[-1]]
        assert starts[0][text[0]]


@pytest.mark.parametrize("length", [1, 2])
def test_a_text_of_one_token_is_a_word_and_of_two_ends_with_a_period(small_lm, length):
    config = settings()
    vocabulary = Vocabulary(torch.ones(20, dtype=torch.bool), marks(20, [17]), STARTS)
    (text,) = project(small_lm, PROMPTS, config, vocabulary, vectors_for(small_lm, config, 1), [length], [0])
    assert STARTS[0][text[0]]
    assert text[-1] == 17 or length == 1


def test_ends_that_are_all_banned_are_no_condition():
    vocabulary = Vocabulary(marks(20, [3, 4, 5]), marks(20, [17]), None)
    assert torch.equal(vocabulary.mask(2, torch.tensor([3])), marks(20, [3, 4, 5])[None])


def test_a_text_whose_every_first_word_is_banned_still_holds_no_banned_token(small_lm):
    config, allowed_V = settings(), marks(20, [13, 14])
    vocabulary = Vocabulary(allowed_V, None, STARTS)
    vectors = vectors_for(small_lm, config)
    for text in project(small_lm, PROMPTS, config, vocabulary, vectors, LENGTHS, LABELS):
        assert set(text) <= {13, 14}


def test_nearness_alone_gives_the_text_whose_embeddings_are_given(demo_lm, demo_task):
    texts = ["The film is a great delight.", "Boring, and much too long!", "Who wants to see this again?"]
    ids = [demo_task.text_ids(text) for text in texts]
    lengths = [len(row) for row in ids]
    vectors = torch.zeros(3, max(lengths), demo_lm.embeddings_VE.shape[1])
    for row, own in enumerate(ids):
        vectors[row, : len(own)] = demo_lm.embeddings_VE[own]
    vocabulary = Vocabulary(
        allowed_tokens(demo_lm.tokenizer, demo_lm.vocab_size),
        sentence_ends(demo_lm.tokenizer, demo_lm.vocab_size),
        bare_starts(demo_lm.tokenizer, demo_lm.vocab_size),
    )
    config = settings(nearness=1e6)
    again = project(demo_lm, demo_task.instruction_ids, config, vocabulary, vectors, lengths, [0, 1, 0])
    assert [demo_task.decode(row) for row in again] == texts
    assert again == ids


@pytest.mark.parametrize("metric", METRICS)
def test_a_short_list_of_one_is_the_nearest_token_whatever_the_lm_thinks(small_lm, metric):
    config = settings(order="nearest_then_probable", metric=metric, k=1)
    fast, _, vectors, allowed_V = chosen(small_lm, config)
    kept = allowed_V.nonzero()[:, 0].tolist()
    for row, text in enumerate(fast):
        for t, token in enumerate(text):
            table = small_lm.embeddings_VE
            assert token == min(kept, key=lambda j: half_squared_distance(metric, vectors[row, t], table[j]))


def test_a_short_list_of_one_is_the_most_probable_token_whatever_the_vector(small_lm):
    config = settings(order="probable_then_nearest", k=1)
    fast, _, _, allowed_V = chosen(small_lm, config)
    for text, label in zip(fast, LABELS, strict=True):
        for t, token in enumerate(text):
            logits = next_logits(small_lm, [*PROMPTS[label], *text[:t]])
            assert token == int(logits.masked_fill(~allowed_V, -torch.inf).argmax())


def test_nearness_is_in_nats_per_half_squared_unit(small_lm):
    """Between two tokens: find where the choice turns, and weigh both sides there."""
    logits = next_logits(small_lm, PROMPTS[0])
    a, b = logits.topk(2).indices.tolist()
    start, stop = small_lm.embeddings_VE[a], small_lm.embeddings_VE[b]
    vocabulary = Vocabulary(marks(20, [a, b]), None, None)
    config = settings(nearness=0.5)
    shares = torch.linspace(0, 3, 3001)
    vectors = (start + shares[:, None] * (stop - start))[:, None]
    tokens = [text[0] for text in project(small_lm, PROMPTS, config, vocabulary, vectors, [1] * 3001, [0] * 3001)]
    turn = shares[tokens.index(b)]
    squares = ((start - stop).square().sum() * torch.stack([turn, turn - 1]).square()).tolist()
    assert tokens[0] == a
    # log p(a) - nearness/2 |v - a|^2 = log p(b) - nearness/2 |v - b|^2
    assert float(logits[a] - logits[b]) == pytest.approx(config.nearness / 2 * (squares[0] - squares[1]), rel=0.02)


@pytest.mark.parametrize("order", ORDERS)
def test_the_cosine_knows_no_length(small_lm, order):
    config = settings(order=order, metric="cosine", k=5)
    vocabulary = Vocabulary(torch.ones(20, dtype=torch.bool), None, None)
    vectors = vectors_for(small_lm, config)
    plain, longer = (
        project(small_lm, PROMPTS, config, vocabulary, scale * vectors, LENGTHS, LABELS) for scale in (1.0, 20.0)
    )
    assert plain == longer


def test_nearness_orders_tokens_like_the_distance(small_lm):
    vectors = vectors_for(small_lm, settings()).flatten(0, 1)
    vocabulary = Vocabulary(torch.ones(20, dtype=torch.bool), None, None)
    for metric in METRICS:
        config = settings(metric=metric)
        projector = Projector(PromptCache(small_lm, PROMPTS), small_lm.embeddings_VE, vocabulary, config)
        for vector, near_V in zip(vectors, projector.nearness(vectors), strict=True):
            far = [half_squared_distance(metric, vector, e) for e in small_lm.embeddings_VE]
            assert near_V.argsort(descending=True).tolist() == sorted(range(20), key=far.__getitem__)
            if metric == "euclidean":
                span = float(near_V.max() - near_V.min())
                assert math.isclose(span, max(far) - min(far), rel_tol=1e-4)
