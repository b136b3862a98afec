"""Starting points: lengths, texts that the LM writes, random vectors, and their layout as blocks."""

import re

import pytest
import torch
from pydantic import ValidationError

from gradmm.data.vocabulary import allowed_tokens, sentence_ends
from gradmm.decoding import PromptCache, sample
from gradmm.errors import GradmmError
from gradmm.solvers.initial import InitialConfig, LengthConfig, as_block, join, pick, random_block, write_texts


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def write(lm, task, labels, lengths, config=InitialConfig(), seed=0, allowed_V=None):
    prompts = PromptCache(lm, task.instruction_ids)
    allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size) if allowed_V is None else allowed_V
    return write_texts(task, prompts, allowed_V, labels, lengths, config, seeded(seed))


@pytest.mark.parametrize("distribution", ["natural", "uniform"])
def test_uniform_lengths_take_every_value_between_the_bounds_equally_often(distribution):
    drawn = LengthConfig(distribution=distribution, min_tokens=5, max_tokens=9).draw(5000, seeded())
    assert sorted(set(drawn.tolist())) == [5, 6, 7, 8, 9]
    expected = 1000
    counts = torch.bincount(drawn)[5:].float()
    assert float(((counts - expected).square() / expected).sum()) < 23.5  # 99.99 % with four degrees of freedom


def test_normal_lengths_have_the_mean_and_the_deviation_within_the_bounds():
    wide = LengthConfig(distribution="normal", min_tokens=1, max_tokens=60, mean=25.0, std=5.0)
    drawn = wide.draw(20_000, seeded()).float()
    assert float(drawn.mean()) == pytest.approx(25.0, abs=0.15)
    assert float(drawn.std()) == pytest.approx((25 + 1 / 12) ** 0.5, abs=0.15)  # rounding adds 1/12
    narrow = LengthConfig(distribution="normal", min_tokens=22, max_tokens=26, mean=25.0, std=5.0)
    assert sorted(set(narrow.draw(1000, seeded()).tolist())) == [22, 23, 24, 25, 26]
    certain = LengthConfig(distribution="normal", mean=11.4, std=0.0)
    assert set(certain.draw(50, seeded()).tolist()) == {11}


def test_fixed_lengths_are_the_longest():
    drawn = LengthConfig(distribution="fixed", max_tokens=13).draw(4, seeded())
    assert drawn.tolist() == [13] * 4
    assert LengthConfig(distribution="fixed", max_tokens=3).draw(1, seeded()).tolist() == [3]


def test_allowed_tokens_that_become_a_banned_one_are_written_again(tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    allowed_V = torch.zeros(lm.vocab_size, dtype=torch.bool)
    allowed_V[lm.tokenizer.convert_tokens_to_ids([*"baden"])] = True  # "ad", "nd" and "bad" are one token each
    lengths = LengthConfig(distribution="fixed", max_tokens=2)
    written = write(lm, task, [0] * 64, lengths, InitialConfig(temperature=5.0), allowed_V=allowed_V)
    assert all(bool(allowed_V[row].all()) for row in written)


def test_bounds_in_the_wrong_order_are_an_error():
    with pytest.raises(ValidationError, match="min_tokens 9 exceeds max_tokens 8"):
        LengthConfig(min_tokens=9, max_tokens=8)


def test_natural_texts_end_a_sentence_and_fit(demo_lm, demo_task):
    lengths = LengthConfig(min_tokens=6, max_tokens=20)
    written = write(demo_lm, demo_task, [0, 1] * 6, lengths)
    assert len({tuple(row) for row in written}) == 12
    for row in written:
        text = demo_task.decode(row)
        assert re.search(r"[.!?]['\")]?$", text), text
        assert 6 <= len(row) <= 20
        assert demo_task.text_ids(text) == row, "the tokens are those of the text in its place"
    assert len({len(row) for row in written}) > 3


@pytest.mark.parametrize("distribution", ["fixed", "uniform", "normal"])
def test_other_texts_have_exactly_the_lengths_that_were_drawn(demo_lm, demo_task, distribution):
    lengths = LengthConfig(distribution=distribution, min_tokens=4, max_tokens=9, mean=6, std=1)
    written = write(demo_lm, demo_task, [1, 0, 1, 1, 0], lengths)
    assert [len(row) for row in written] == lengths.draw(5, seeded()).tolist()


def test_a_text_that_reads_back_as_fewer_tokens_is_written_again(tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    allowed_V = torch.zeros(lm.vocab_size, dtype=torch.bool)
    allowed_V[lm.tokenizer.convert_tokens_to_ids([*"bad"])] = True  # "ad" and "bad" are one token each
    lengths, config = (
        LengthConfig(distribution="fixed", min_tokens=1, max_tokens=6),
        InitialConfig(temperature=5.0),
    )
    labels = torch.zeros(12, dtype=torch.long)
    drawn = sample(PromptCache(lm, task.instruction_ids), labels, 8, allowed_V, seeded(), config.temperature)
    assert min(len(task.text_ids(task.decode(row))) for row in drawn.tolist()) < 6, "the case does come up"
    assert {len(row) for row in write(lm, task, [0] * 40, lengths, config, allowed_V=allowed_V)} == {6}


def test_texts_depend_on_the_seed_and_the_class(demo_lm, demo_task):
    lengths = LengthConfig(distribution="fixed", min_tokens=1, max_tokens=6)
    first = write(demo_lm, demo_task, [0, 1, 0], lengths)
    assert write(demo_lm, demo_task, [0, 1, 0], lengths) == first
    assert write(demo_lm, demo_task, [0, 1, 0], lengths, seed=1) != first
    other = write(demo_lm, demo_task, [0, 0, 0], lengths, InitialConfig(temperature=0.5))
    assert other[1] != first[1]


def test_a_text_may_end_where_the_lm_ends_it(tiny_lm, tiny_task):
    """No token that may be drawn ends a sentence; the LM's own end of a text does, and is no part of it."""
    lm = tiny_lm("gpt2")
    task, end = tiny_task(lm), lm.tokenizer.eos_token_id
    allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size) & ~sentence_ends(lm.tokenizer, lm.vocab_size)
    bias_V = torch.zeros(lm.vocab_size)
    bias_V[end] = 4.0
    lengths, prompts = LengthConfig(min_tokens=3, max_tokens=12), PromptCache(lm, task.instruction_ids)
    given = (task, prompts, allowed_V, [0, 1] * 8, lengths, InitialConfig(), seeded())
    written = write_texts(*given, bias_V=bias_V)
    assert all(3 <= len(row) <= 12 and end not in row for row in written)
    assert len({len(row) for row in written}) > 2
    assert all(task.text_ids(task.decode(row)) == row for row in written)


def test_an_lm_that_ends_no_sentence_is_given_up_on(tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size) & ~sentence_ends(lm.tokenizer, lm.vocab_size)
    with pytest.raises(GradmmError) as caught:
        write(lm, tiny_task(lm), [0, 1], LengthConfig(min_tokens=3, max_tokens=6), allowed_V=allowed_V)
    assert str(caught.value) == (
        "the LM 'tiny gpt2' did not write 2 of 2 texts of 3 to 6 tokens that end a sentence in 20 tries; "
        "raise lengths.max_tokens, loosen bans, or use lengths.distribution=uniform"
    )


def test_a_block_holds_the_embeddings_and_zeros_where_a_text_has_ended(tiny_lm):
    table = tiny_lm("gpt2").embeddings_VE
    start = as_block(table, [[5, 6, 7], [8]])
    assert start.lengths_KB.tolist() == [[3, 1]]
    assert start.codes_KBT.tolist() == [[[5, 6, 7], [8, 0, 0]]]
    assert torch.equal(start.x_KBTE[0, 0], table[[5, 6, 7]])
    assert torch.equal(start.x_KBTE[0, 1, 0], table[8])
    assert not start.x_KBTE[0, 1, 1:].any()


@pytest.mark.parametrize("scale", [None, 1.4])
def test_random_vectors_have_the_norm_that_was_asked_for(tiny_lm, scale):
    table = tiny_lm("gpt2").embeddings_VE
    lengths = LengthConfig(distribution="uniform", min_tokens=2, max_tokens=9)
    start = random_block(table, 5, lengths, InitialConfig(source="random", scale=scale), seeded())
    assert start.lengths_KB.tolist() == [lengths.draw(5, seeded()).tolist()]
    assert start.x_KBTE.shape == (1, 5, int(start.lengths_KB.max()), 32)
    norm = scale or float(torch.stack([row.norm() for row in table]).mean())
    inside = torch.arange(start.x_KBTE.shape[2]) < start.lengths_KB.unsqueeze(-1)
    torch.testing.assert_close(start.x_KBTE.norm(dim=-1)[inside], torch.full((int(inside.sum()),), norm))
    assert not start.x_KBTE[~inside].any(), "as in a block of texts, there is nothing beyond the end"
    assert start.codes_KBT is None
    # Directions are all alike: no coordinate has a mean that is far from zero.
    even = LengthConfig(distribution="fixed", min_tokens=1, max_tokens=9)
    many = random_block(table, 400, even, InitialConfig(source="random", scale=scale), seeded(1)).x_KBTE
    assert float(many.flatten(0, 2).mean(0).abs().max()) < 5 * norm / (32 * 3600) ** 0.5


def test_joined_blocks_come_back_as_they_were(tiny_lm):
    table = tiny_lm("gpt2").embeddings_VE
    blocks = [as_block(table, [[5, 6], [7]]), as_block(table, [[1, 2, 3, 4], [9, 9]]), as_block(table, [[3], [4]])]
    whole = join(blocks)
    assert whole.x_KBTE.shape == (3, 2, 4, 32)
    for k, block in enumerate(blocks):
        for mine, own in zip(pick(whole, k), block, strict=True):
            assert torch.equal(mine, own)
    assert join([blocks[0], blocks[1]._replace(codes_KBT=None)]).codes_KBT is None


@pytest.mark.parametrize(("endless", "kept"), [(0, 4), (1, 3), (2, 2), (3, None)])
def test_half_of_the_texts_will_do_where_fewer_may_be_written(
    tiny_lm, tiny_task, monkeypatch, caplog, endless, kept
):
    """Those of label 1 come to no end, however often they are tried."""
    caplog.set_level("INFO", logger="gradmm")
    lm = tiny_lm("gpt2")
    task, labels = tiny_task(lm), [1] * endless + [0] * (4 - endless)
    texts = [lm.tokenizer(text, add_special_tokens=False).input_ids for text in (" a film.", " a film")]
    width = min(map(len, texts))

    def write_so(prompts, own, *given):
        return torch.tensor([texts[label][-width:] for label in own.tolist()])

    monkeypatch.setattr("gradmm.solvers.initial.sample", write_so)
    about = (task, PromptCache(lm, task.instruction_ids), allowed_tokens(lm.tokenizer, lm.vocab_size), labels)
    given = (*about, LengthConfig(min_tokens=1, max_tokens=12), InitialConfig(), seeded())
    if endless:
        with pytest.raises(GradmmError, match=f"did not write {endless} of 4 texts"):
            write_texts(*given)
    if kept is None:
        with pytest.raises(GradmmError, match="did not write 3 of 4 texts"):
            write_texts(*given, fewer=True)
        return
    found = write_texts(*given, fewer=True)
    assert len(found) == kept and all(found)
    said = f"tiny gpt2 came to no end with {endless} of 4 texts in 20 tries, and goes on without"
    assert (said in caplog.text) == (endless > 0)
