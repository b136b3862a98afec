"""Refinement's proposals: words that are drawn as the model writes them, none too often in a row."""

import pytest
import torch

from gradmm.data.vocabulary import allowed_tokens, bare_starts
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.spaces import IDENTITY
from gradmm.memory import BatchLimit
from gradmm.solvers.pool import most_repeats
from gradmm.solvers.refinement import RefinementConfig, Refiner
from refinement_tools import DISTANCES, LABEL, ROWS, TEXTS, UNEVEN
from solver_oracles import next_logits


def test_no_change_says_a_word_too_often_in_a_row(refining):
    """Where it may, some do."""
    texts = ["The film is great great", "The end is bad bad"]
    most = {}
    for max_repeats in (None, 2):
        _, _, refiner = refining("gpt2", proposals=112, labels=(0, 0), max_repeats=max_repeats)
        places = [(i, t) for i in (0, 1) for t in (1, 2, 3)]
        most[max_repeats] = {most_repeats(text) for *_, text in refiner._propose(refiner.init(texts), places)}
    assert max(most[None]) == 3 and max(most[2]) == 2


@pytest.mark.parametrize("kind", ["gpt2", "phi", "llama", "gemma2"])
def test_proposals_are_drawn_from_the_lms_distribution_after_prompt_and_left_context(refining, kind, monkeypatch):
    """Of a text's own class."""
    lm, task, refiner = refining(kind, labels=UNEVEN)
    places, seen = [(0, 1), (1, 5), (2, 3), (3, 1), (1, 2)], []
    monkeypatch.setattr(refiner, "_draw", lambda logits_V, _: seen.append(logits_V.clone()) or [])
    assert refiner._propose(refiner.init(TEXTS), places) == []
    spaced = bare_starts(lm.tokenizer, lm.vocab_size)[1]
    for (i, t), found_V in zip(places, seen, strict=True):
        ids = task.text_ids(TEXTS[i])
        first = int(spaced[ids[0]]) if task.starts_bare else ids[0]
        own_V, other_V = (
            next_logits(lm, [*task.instruction_ids[label], first, *ids[1:t]])
            for label in (UNEVEN[i], 1 - UNEVEN[i])
        )
        drawn_V = refiner._allowed_V.clone()
        drawn_V[ids[t]] = False  # what stands there now
        torch.testing.assert_close(found_V[drawn_V], own_V[drawn_V], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found_V[drawn_V], other_V[drawn_V], rtol=1e-3, atol=1e-3), "prompts differ"
        assert bool((found_V[~drawn_V] == -torch.inf).all())


def test_the_first_word_is_shown_to_the_lm_as_after_a_prompt(demo_lm, demo_task):
    target = compute_target(demo_lm, demo_task, [[own] for own in ROWS]).classes[LABEL]
    allowed_V = allowed_tokens(demo_lm.tokenizer, demo_lm.vocab_size)
    config = RefinementConfig()
    refiner = Refiner(
        demo_lm,
        demo_task,
        [LABEL],
        target,
        IDENTITY,
        DISTANCES[0],
        allowed_V,
        config,
        BatchLimit(),
        lambda *_: torch.Generator(),
    )
    prompt = demo_task.task.instruction(LABEL)
    whole = demo_task.tokenizer(f"{prompt} The film is").input_ids
    bare = demo_task.text_ids("The film is")
    assert whole[-3:] != bare
    expected_V = next_logits(demo_lm, whole)
    found_V = refiner._next_token_logits([refiner._shown(LABEL, bare)])[0]
    torch.testing.assert_close(found_V[allowed_V], expected_V[allowed_V], rtol=1e-4, atol=1e-4)


def test_drawn_tokens_follow_the_distribution_without_replacement(refining):
    refiner = refining(proposals=2, temperature=2.0)[2]
    logits_V = torch.tensor([0.0, 2.0, -torch.inf, 1.0, -1.0])
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(5, 5)
    for _ in range(4000):
        first, second = refiner._draw(logits_V, generator)
        counts[first, second] += 1
    p = torch.softmax(logits_V / 2, -1)
    expected = p[:, None] * p[None] / (1 - p[:, None])
    expected.fill_diagonal_(0)
    assert float((counts / 4000 - expected).abs().max()) < 0.025
    assert sorted(refining(proposals=9)[2]._draw(logits_V, generator)) == [0, 1, 3, 4], "no banned one fills up"
