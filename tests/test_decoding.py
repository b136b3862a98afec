"""Decoding after class prompts, against whole forward passes of one text at a time."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from gradmm.decoding import PromptCache, decode, draw, log_perplexity, sample
from gradmm.errors import ConfigError
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from solver_oracles import decode_slowly, draw_by_rejection_slowly, log_perplexity_slowly

PROMPTS = [[40, 7, 9, 30], [5, 6, 7, 8, 9, 10, 11], [30, 9, 7, 40], [3]]  # lengths 4, 7, 4 and 1: three groups
LABELS = [2, 1, 0, 3, 0, 1, 2, 0]


def greedy(t, rows, logits_NV):
    token_N = logits_NV.argmax(-1)
    return token_N, token_N


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def sliding_lm(tiny_lm):
    """Attention that sees three tokens back: less than the prompts' length."""
    config = transformers.MistralConfig(
        **{"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 3, "initializer_range": 0.25},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LanguageModel(transformers.MistralForCausalLM(config), tiny_lm("gpt2").tokenizer)


def check(lm, labels, steps, stride=0):
    """Greedy, or `stride` tokens further for each row and step so that the texts vary; shown is not written."""
    seen = {}

    def choose(t, rows, logits_NV):
        seen.update({(t, row): logits for row, logits in zip(rows.tolist(), logits_NV, strict=True)})
        token_N = (logits_NV.argmax(-1) + stride * (rows + t)) % 110
        return token_N, (token_N + stride) % 110

    def pick(t, row, logits):
        torch.testing.assert_close(seen[t, row], logits, atol=1e-4, rtol=1e-4)
        token = (int(logits.argmax()) + stride * (row + t)) % 110
        return token, (token + stride) % 110

    fast = decode(PromptCache(lm, PROMPTS), torch.tensor(labels), steps, choose)
    slow = decode_slowly(lm, PROMPTS, labels, steps, pick)
    assert fast.tolist() == slow
    assert len(seen) == len(labels) * steps


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mamba", "falcon_h1", "openai-gpt", "bamba"])
@pytest.mark.parametrize("stride", [0, 7])
def test_cached_decoding_is_uncached_decoding(tiny_lm, kind, stride):
    """`test_architectures.py` samples and projects with every kind."""
    check(tiny_lm(kind), [2, 1, 0, 3, 0], 5, stride)


def test_cached_decoding_is_uncached_decoding_of_the_demo_model(demo_lm):
    seen = []

    def choose(t, rows, logits_NV):
        seen.append(int(logits_NV.argmax(-1)[0]))
        return greedy(t, rows, logits_NV)

    labels = [2, 1, 0, 3]
    fast = decode(PromptCache(demo_lm, PROMPTS), torch.tensor(labels), 5, choose)
    assert fast.tolist() == decode_slowly(
        demo_lm, PROMPTS, labels, 5, lambda t, row, logits: [logits.argmax()] * 2
    )
    assert len(set(seen)) > 5


@pytest.mark.parametrize("stride", [0, 7])
def test_cached_decoding_is_uncached_decoding_with_a_sliding_window(sliding_lm, stride):
    check(sliding_lm, [2, 1, 0, 3, 0], 6, stride)


def test_rows_in_another_order_decode_the_same(tiny_lm):
    lm, order = tiny_lm("gpt2"), torch.tensor([5, 0, 7, 2, 1, 6, 4, 3])
    cache = PromptCache(lm, PROMPTS)
    plain = decode(cache, torch.tensor(LABELS), 5, greedy)
    assert torch.equal(decode(cache, torch.tensor(LABELS)[order], 5, greedy), plain[order])


def test_decoding_leaves_the_prompts_as_they_are(tiny_lm, sliding_lm):
    for lm in (tiny_lm("phi"), sliding_lm):
        cache = PromptCache(lm, PROMPTS)
        first = decode(cache, torch.tensor(LABELS), 6, greedy)
        decode(cache, torch.tensor([1, 1, 1, 0]), 9, lambda t, rows, logits: [logits.argmin(-1)] * 2)
        assert torch.equal(decode(cache, torch.tensor(LABELS), 6, greedy), first)


def test_prompts_go_through_the_model_once_and_then_one_token_per_step(tiny_lm, monkeypatch):
    monkeypatch.setattr("gradmm.decoding.find_cache", lambda body, ids_NS: ("past_key_values", ""))
    lm, calls = tiny_lm("qwen3"), []
    handle = lm.body.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        cache = PromptCache(lm, PROMPTS)
        assert sorted(calls) == [(1, 1), (1, 7), (2, 4)]
        calls.clear()
        decode(cache, torch.tensor(LABELS), 4, greedy)
        decode(cache, torch.tensor(LABELS), 1, greedy)  # the first token needs no pass at all
        assert sorted(calls) == sorted([(5, 1), (2, 1), (1, 1)] * 3)
    finally:
        handle.remove()


def test_many_prompts_are_read_some_at_a_time(tiny_lm):
    """A thousand classes must not become one batch."""
    lm, sizes = tiny_lm("gpt2"), []
    prompts = [[40, 7, 9 + n % 100] for n in range(130)] + [[5, 6], [6, 7]]
    handle = lm.body.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        cache = PromptCache(lm, prompts)
    finally:
        handle.remove()
    assert max(sizes) == 64
    labels = torch.tensor([131, 0, 64, 129, 5, 130, 65])
    written = decode(cache, labels, 3, greedy)
    for label, own in zip(labels.tolist(), written, strict=True):
        assert torch.equal(decode(PromptCache(lm, [prompts[label]]), torch.tensor([0]), 3, greedy)[0], own)


def test_texts_that_do_not_fit_the_context_are_refused_before_any_is_decoded(tiny_lm):
    cache = PromptCache(tiny_lm("gpt2"), PROMPTS)
    assert decode(cache, torch.tensor([1]), 122, greedy).shape == (1, 122)  # the last token is never read
    with pytest.raises(ConfigError) as caught:
        decode(cache, torch.tensor([0]), 123, greedy)
    assert str(caught.value) == (
        "123 tokens after an instruction of 7 exceed the context of 128 of 'tiny gpt2' (GPT2LMHeadModel); lower "
        "lengths.max_tokens or shorten the instructions"
    )


def test_a_prompt_may_fill_the_context(tiny_lm):
    lm = tiny_lm("gpt2")
    assert decode(PromptCache(lm, [[5] * 128]), torch.tensor([0]), 1, greedy).shape == (1, 1)
    with pytest.raises(ConfigError, match="1 tokens after an instruction of 129 exceed the context of 128"):
        PromptCache(lm, [[5], [5] * 129])


@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_sampling_draws_by_each_texts_own_numbers(tiny_lm, bias):
    lm = tiny_lm("gemma2")
    allowed_V = torch.arange(lm.vocab_size) % 3 > 0
    bias_V = bias * (torch.arange(lm.vocab_size) % 5 - 2.0)
    given = {"bias_V": bias_V} if bias else {}
    fast = sample(PromptCache(lm, PROMPTS), torch.tensor(LABELS), 5, allowed_V, seeded(), 0.7, 0.8, **given)
    uniform_NTR = torch.rand(len(LABELS), 5, 4, generator=seeded()).tolist()

    def slowly(t, row, logits):
        weights = torch.softmax((logits + bias_V).double() / 0.7, -1) * allowed_V
        token = draw_by_rejection_slowly((weights / weights.sum()).tolist(), uniform_NTR[row][t], 0.8)
        return token, token

    assert fast.tolist() == decode_slowly(lm, PROMPTS, LABELS, 5, slowly)


def test_sampling_is_reproducible_and_never_draws_a_banned_token(tiny_lm):
    cache, labels = PromptCache(tiny_lm("opt"), PROMPTS), torch.tensor(LABELS * 20)
    allowed_V = torch.zeros(cache.lm.vocab_size, dtype=torch.bool)
    allowed_V[[4, 17, 50, 101]] = True
    drawn = sample(cache, labels, 6, allowed_V, seeded(), temperature=3.0)
    assert torch.equal(drawn, sample(cache, labels, 6, allowed_V, seeded(), temperature=3.0))
    assert not torch.equal(drawn, sample(cache, labels, 6, allowed_V, seeded(1), temperature=3.0))
    assert set(drawn.flatten().tolist()) == {4, 17, 50, 101}


def test_sampling_without_temperature_is_greedy(tiny_lm):
    lm = tiny_lm("neox")
    allowed_V = torch.arange(lm.vocab_size) >= 50

    def best_allowed(t, rows, logits_NV):
        token_N = logits_NV.masked_fill(~allowed_V, -torch.inf).argmax(-1)
        return token_N, token_N

    cache, labels = PromptCache(lm, PROMPTS), torch.tensor(LABELS)
    cold = sample(cache, labels, 6, allowed_V, seeded(), temperature=1e-4)
    assert torch.equal(cold, decode(cache, labels, 6, best_allowed))
    assert torch.equal(cold, sample(cache, labels, 6, allowed_V, seeded(), top_p=1e-6))
    assert not torch.equal(cold, sample(cache, labels, 6, allowed_V, seeded()))


@pytest.mark.parametrize("tries", [1, 2, 4])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.05])
def test_draw_keeps_the_first_token_of_the_nucleus(top_p, tries):
    probabilities_NV = torch.softmax(2 * torch.randn(300, 40, generator=seeded()), -1)
    uniform_NR = torch.rand(300, tries, generator=seeded(1))
    pairs = zip(probabilities_NV.tolist(), uniform_NR.tolist(), strict=True)
    slow = [draw_by_rejection_slowly(row, uniforms, top_p) for row, uniforms in pairs]
    assert draw(probabilities_NV, uniform_NR, top_p).tolist() == slow


@pytest.mark.parametrize("tries", [1, 3])
def test_the_nucleus_is_the_smallest_set_with_the_mass(tries):
    probabilities_V = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    uniform_NR = torch.linspace(0, 1 - 2**-24, 500)[:, None].expand(-1, tries)
    for top_p, nucleus in {0.3: {1}, 0.5: {1, 3}, 0.7: {1, 3, 4}, 0.9: {1, 3, 4, 0}, 1.0: {0, 1, 2, 3, 4}}.items():
        assert set(draw(probabilities_V.expand(500, -1), uniform_NR, top_p).tolist()) == nucleus


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("tries", [1, 4])
def test_draw_never_gives_a_token_without_probability(tries, top_p):
    logits_NV = 3 * torch.randn(200, 5000, generator=seeded())
    probabilities_NV = torch.softmax(logits_NV.masked_fill(logits_NV < 0, -torch.inf), -1)
    for uniform in (0.0, 1 - 2**-24):  # the ends of what torch.rand returns
        drawn = draw(probabilities_NV, torch.full((200, tries), uniform), top_p)
        assert bool((probabilities_NV.gather(1, drawn[:, None]) > 0).all())


@pytest.mark.parametrize("tries", [1, 2, 4])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_draws_are_as_frequent_as_probable(top_p, tries):
    probabilities_V = torch.tensor([0.08, 0.4, 0.02, 0.3, 0.2])
    drawn = draw(probabilities_V.expand(20_000, -1), torch.rand(20_000, tries, generator=seeded()), top_p)
    inside = probabilities_V * (probabilities_V > (0.1 if top_p < 1 else 0))
    expected = (20_000 * inside / inside.sum())[inside > 0]
    counts = torch.bincount(drawn, minlength=5)
    assert bool((counts[inside == 0] == 0).all())
    statistic = float(((counts[inside > 0] - expected).square() / expected).sum())
    assert statistic < 23.5  # 99.99 % of chi-square with four degrees of freedom


def test_log_perplexity_is_the_models_own_cross_entropy(each_tiny_lm):
    texts = [[30, 31, 32], [9], [50, 51, 52, 53, 54, 55, 56], [40, 41], [20, 21, 22]]
    bos = each_tiny_lm.tokenizer.bos_token_id
    expected = [log_perplexity_slowly(each_tiny_lm, ids, bos) for ids in texts]
    assert log_perplexity(each_tiny_lm, texts, limit=BatchLimit(2)) == pytest.approx(expected, rel=1e-5)
    with_bos = [[bos, *ids] for ids in texts]
    assert log_perplexity(each_tiny_lm, with_bos) == pytest.approx(expected, rel=1e-5)


def test_log_perplexity_without_a_bos_token_leaves_the_first_token_out(tiny_lm):
    lm = LanguageModel(tiny_lm("gpt2").model, SimpleNamespace(bos_token_id=None))
    texts = [[30, 31, 32], [9], [50, 51, 52, 53, 54, 55, 56]]
    expected = [log_perplexity_slowly(lm, ids, None) if len(ids) > 1 else float("nan") for ids in texts]
    assert log_perplexity(lm, texts) == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert log_perplexity(lm, texts, limit=BatchLimit(1)) == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_log_perplexity_does_not_depend_on_batching_or_order(demo_lm, demo_task):
    texts = ["A fine film.", "Dull.", "The plot is thin, but the cast is very good indeed.", "Go and see it!"]
    ids = [demo_task.text_ids(text) for text in texts]
    expected = [log_perplexity_slowly(demo_lm, row, demo_lm.tokenizer.bos_token_id) for row in ids]
    for batch_size in (1, 2, 32):
        assert log_perplexity(demo_lm, ids, BatchLimit(batch_size)) == pytest.approx(expected, rel=1e-5)
        assert log_perplexity(demo_lm, ids[::-1], BatchLimit(batch_size)) == pytest.approx(
            expected[::-1], rel=1e-5
        )
    assert log_perplexity(demo_lm, []) == []
