"""Refinement against materialised gradients of one text at a time, and against brute force."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import allowed_tokens, bare_starts
from gradmm.gradients.distances import DistanceConfig
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.losses import VerbaliserLoss
from gradmm.gradients.spaces import IDENTITY, LinearMap, Space
from gradmm.memory import BatchLimit
from gradmm.seeds import make_generator
from gradmm.solvers import refinement
from gradmm.solvers.pool import most_repeats
from gradmm.solvers.refinement import FRESH, RefinementConfig, RefinementState, Refiner
from solver_oracles import distance_slowly, log_perplexity_slowly, mean_gradient, next_logits, text_gradient

LABEL = 1
ONE, TWO, UNEVEN = (1, 1, 1, 1), (0, 0, 1, 1), (1, 0, 1, 1)
"""Classes of the four texts below."""
MIXED = {"labels": UNEVEN, "words": (" bad", " very great")}
KNOWN = {}
FREE = 4.8  # nats per token, about what random models give
ROWS = [
    ["The film is bad.", "A dull story with a bad end"],
    ["The film is great.", "A fine story", "This makes me feel happy. I feel happy", "What a great end!"],
]
TEXTS = ["The film is a story.", "I feel it was a dull end", "It makes me sad.", "Fine!"]
DISTANCES = [
    DistanceConfig(name=name, bias=bias)
    for name in ("cosine", "relative_l2")
    for bias in ("joint", "separate", "ignore")
]


@pytest.fixture
def refining(tiny_lm, tiny_task):
    """Builds (lm, task, refiner) for a kind of model."""

    def build(
        kind="phi",
        distance=DISTANCES[0],
        space=IDENTITY,
        limit=None,
        allowed_V=None,
        seed=0,
        words=None,
        free=FREE,
        labels=ONE,
        prompts=(),
        max_repeats=None,
        **settings,
    ):
        lm = tiny_lm(kind)
        task = tiny_task(lm, words or (" bad", " great"), "Review: {text} It was")
        task = BoundTask(task.task.model_copy(update={"instructions": prompts}), lm.tokenizer, lm.max_length)
        released, classes = compute_target(lm, task, [[own] for own in ROWS], space=space), sorted(set(labels))
        target = released.together(classes, [labels.count(label) for label in classes])
        config = RefinementConfig(**{"evaluations": 12, "proposals": 4, "places": 3, "nll_weight": 0.0} | settings)
        if allowed_V is None:
            allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size)
            allowed_V[lm.tokenizer.convert_tokens_to_ids("Ġ")] = True  # this small tokenizer cannot do without
        refiner = Refiner(
            lm,
            task,
            labels,
            target,
            space,
            distance,
            allowed_V,
            config,
            limit or BatchLimit(),
            lambda *purpose: make_generator(seed, *purpose),
            free,
            max_repeats=max_repeats,
        )
        return lm, task, refiner

    return build


def followed(refiner, texts=TEXTS, state=None):
    """The states between steps, each as JSON, the first one before all steps."""
    state = refiner.init(texts) if state is None else state
    states = [json.dumps(asdict(state), allow_nan=False)]
    refiner.run(state, lambda now: states.append(json.dumps(asdict(now), allow_nan=False)))
    return states


def read(kept):
    return RefinementState(**json.loads(kept))


@pytest.fixture(scope="module", autouse=True)
def known():
    """Gradients of texts, which the states of a run share nearly all of; models do not change here."""
    KNOWN.clear()
    yield
    KNOWN.clear()


def gradient_of(lm, task, text, label, loss=None):
    key = (lm.name, task.task.verbalisers, text, label, None if loss is None else str(loss.bias_CLM))
    if key not in KNOWN:
        own = (lm, task, task.text_ids(text), label)
        KNOWN[key] = text_gradient(*own) if loss is None else verbaliser_gradient(*own, loss)
    return KNOWN[key]


def verbaliser_gradient(lm, task, text_ids, label, loss):
    """Of the cross-entropy among the tokens that verbalisers go on with, with the loss's bias added to logits."""
    own, tokens = task.label_ids[label], loss.tokens_M.tolist()
    before = [*task.prefix_ids, *text_ids, *task.suffix_ids]
    weight_VD = lm.head.weight_VD.clone().requires_grad_()
    bias_V = (torch.zeros(len(weight_VD)) if lm.head.bias_V is None else lm.head.bias_V.clone()).requires_grad_()
    head, total = replace(lm.head, weight_VD=weight_VD, bias_V=bias_V), 0.0
    for place, token in enumerate(own):
        with torch.no_grad():
            seen = lm.body(input_ids=torch.tensor([[*before, *own[:place]]]), use_cache=False)
        logits_V = head(seen.last_hidden_state[0, -1])[0]
        following = sorted({ids[place] for ids in task.label_ids if ids[:place] == own[:place]})
        added = torch.stack([loss.bias_CLM[label, place, tokens.index(one)] for one in following])
        total = total - torch.log_softmax(logits_V[following] + added, -1)[following.index(token)]
    return torch.autograd.grad(total, (weight_VD, bias_V))


def nll_slowly(lm, task, texts):
    nll = [log_perplexity_slowly(lm, task.text_ids(text), lm.tokenizer.bos_token_id) for text in texts]
    return sum(nll) / len(nll)


def objective_slowly(
    lm, task, distance, texts, nll_weight, space=IDENTITY, start=TEXTS, free=FREE, labels=ONE, loss=None
):
    """The target is the mean, over the texts, of the mean gradient of the rows of a text's class."""

    def gradient(labelled):
        weight_VD, bias_V = mean_gradient([gradient_of(lm, task, text, label, loss) for text, label in labelled])
        for one in space.maps:
            weight_VD, bias_V = one.r_MV @ weight_VD @ one.h_PD.T, one.r_MV @ bias_V
        return weight_VD, bias_V

    target = mean_gradient([gradient([(row, label) for row in ROWS[label]]) for label in labels])
    mine = gradient(list(zip(texts, labels, strict=True)))
    value = distance_slowly(distance, mine, target, lm.head.bias_V is not None)
    excess = nll_slowly(lm, task, texts) - min(free, nll_slowly(lm, task, start))
    return math.log(max(float(value), 1e-9)) + nll_weight * max(0.0, excess)


@pytest.mark.parametrize("nll_weight", [0.0, 0.05])
@pytest.mark.parametrize("distance", DISTANCES, ids=str)
@pytest.mark.parametrize("labels", [ONE, TWO, UNEVEN], ids=str)
def test_objective_of_every_state_is_that_of_its_texts_and_never_rises(refining, distance, nll_weight, labels):
    lm, task, refiner = refining("phi", distance, nll_weight=nll_weight, labels=labels)
    assert lm.head.bias_V is not None, "phi is here for the bias"
    states = list(map(read, followed(refiner)))
    for state in states:
        expected = objective_slowly(lm, task, distance, state.texts, nll_weight, labels=labels)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert state.start == states[0].objective
    values = [state.objective for state in states]
    assert values == sorted(values, reverse=True)
    assert states[-1].accepted > 2, "it does something"
    assert values[-1] < 0.9 * values[0]


def test_it_spends_no_readability_that_selection_left_unspent(refining):
    start = read(followed(refining("phi", evaluations=30)[2])[-1]).texts
    odd = {"evaluations": 30, "temperature": 1000.0}  # tokens that the LM would not write
    lm, task, careless = refining("phi", **odd)
    before = nll_slowly(lm, task, start)
    assert nll_slowly(lm, task, read(followed(careless, start)[-1]).texts) > before + 0.1
    states = list(map(read, followed(refining("phi", nll_weight=100.0, free=99.0, **odd)[2], start)))
    for state in states:
        assert state.nll_free == pytest.approx(before, rel=1e-4)
        assert nll_slowly(lm, task, state.texts) < before + 0.02
        expected = objective_slowly(lm, task, DISTANCES[0], state.texts, 100.0, start=start, free=99.0)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert states[-1].accepted > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("labels", [ONE, TWO, UNEVEN], ids=str)
@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_other_heads_a_bos_token_and_verbalisers_of_several_tokens(refining, kind, labels, at_once):
    """However classes whose verbalisers differ in length meet in a batch."""
    more = {"words": (" bad", " very great"), "nll_weight": 0.05, "labels": labels, "limit": BatchLimit(at_once)}
    lm, task, refiner = refining(kind, **more)
    assert len(task.label_ids[LABEL]) > 1 == len(task.label_ids[0])
    for state in map(read, followed(refiner)):
        expected = objective_slowly(lm, task, DISTANCES[0], state.texts, 0.05, labels=labels)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert state.accepted > 0


@pytest.mark.parametrize("distance", [DISTANCES[0], DISTANCES[4]], ids=str)
@pytest.mark.parametrize("words", [(" bad", " great"), (" bad", " very great"), (" very bad", " very great")])
def test_losses_that_differ_by_class(refining, tiny_lm, tiny_task, distance, words):
    """Calibration adds to a logit what depends on the class and on the place."""
    task = tiny_task(tiny_lm("phi"), words, "Review: {text} It was")
    loss = VerbaliserLoss.of(task)
    loss = replace(loss, bias_CLM=torch.randn(loss.bias_CLM.shape, generator=torch.Generator().manual_seed(0)))
    lm, task, refiner = refining("phi", distance, Space(loss=loss), words=words, labels=UNEVEN)
    states = list(map(read, followed(refiner)))
    for state in states:
        expected = objective_slowly(lm, task, distance, state.texts, 0.0, labels=UNEVEN, loss=loss)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert states[-1].accepted > 0


@pytest.mark.parametrize("labels", [ONE, TWO], ids=str)
@pytest.mark.parametrize("distance", [DISTANCES[0], DISTANCES[4]], ids=str)
def test_spaces_other_than_the_identity(refining, tiny_lm, distance, labels):
    lm, generator = tiny_lm("phi"), torch.Generator().manual_seed(0)
    maps = [
        LinearMap(r_MV=torch.randn(9, lm.vocab_size, generator=generator), h_PD=torch.eye(32)),
        LinearMap(r_MV=torch.eye(9), h_PD=torch.randn(7, 32, generator=generator)),
    ]
    lm, task, refiner = refining("phi", distance, Space(maps), labels=labels)
    states = list(map(read, followed(refiner)))
    for state in states:
        expected = objective_slowly(lm, task, distance, state.texts, 0.0, Space(maps), labels=labels)
        assert state.objective == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert states[-1].accepted > 0


@pytest.mark.parametrize("labels", [ONE, UNEVEN], ids=str)
def test_every_state_is_a_valid_set(refining, labels):
    settings = {"kind": "gpt2", "temperature": 3.0, "evaluations": 60, "proposals": 20, "labels": labels}
    _, task, refiner = refining(**settings)
    allowed_V = refiner._allowed_V.clone()
    used = {token for text in TEXTS for token in task.text_ids(text)}
    allowed_V[sorted(set(task.text_ids("great happy")) - used)] = False
    refiner = refining(**settings, allowed_V=allowed_V)[2]
    assert not allowed_V[task.text_ids("great")[-1]]
    lengths = [len(task.text_ids(text)) for text in TEXTS]
    for before, after in zip(states := list(map(read, followed(refiner))), states[1:], strict=False):
        assert len(after.texts) == len(TEXTS) == len(set(after.texts))
        for old, new, longest in zip(before.texts, after.texts, lengths, strict=True):
            ids = task.text_ids(new)
            assert 0 < len(ids) <= longest and bool(allowed_V[ids].all())
            assert new[-1] == old[-1], "the last token ends the text"
        changed = sum(old != new for old, new in zip(before.texts, after.texts, strict=True))
        assert (
            bool(changed) == bool(after.accepted - before.accepted) and changed <= after.accepted - before.accepted
        )
    assert states[-1].accepted > 5


def test_changed_texts_are_one_token_away_new_to_the_set_and_no_longer(refining):
    _, task, refiner = refining("gpt2", proposals=112, labels=(*UNEVEN, 0))
    ids = task.text_ids(TEXTS[1])
    neighbour = task.decode([*ids[:3], *task.text_ids("great")[-1:], *ids[4:]])
    texts = [*TEXTS, neighbour]
    places = [(0, 1), (1, 3), (1, 4), (2, 2), (3, 1), (4, 3)]
    changed = refiner._propose(refiner.init(texts), places)
    found, allowed = {text: i for i, _, text in changed}, refiner._allowed_V.nonzero()[:, 0].tolist()
    assert len(found) == len(changed), "each once"
    assert all(ids == task.text_ids(text) for _, ids, text in changed)
    expected, longer = set(), 0
    for i, t in places:
        ids = task.text_ids(texts[i])
        for token in allowed:
            text = task.decode([*ids[:t], token, *ids[t + 1 :]])
            again = task.text_ids(text)
            longer += len(again) > len(ids)
            if text not in texts and len(again) <= len(ids) and bool(refiner._allowed_V[again].all()):
                expected.add(text)
    assert longer > 0
    assert set(found) == expected
    assert refiner._propose(refiner.init(texts), [(0, len(task.text_ids(TEXTS[0])) - 1), (0, 99)]) == []


# ---- proposals


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


# ---- stopping


@pytest.mark.parametrize("evaluations", [0, 1, 3, 7])
def test_the_budget_is_spent_and_never_exceeded(refining, evaluations):
    refiner = refining("gpt2", evaluations=evaluations, proposals=5)[2]
    states = list(map(read, followed(refiner)))
    assert states[-1].evaluations == evaluations * len(TEXTS)
    assert refiner.stop(states[-1]) == "budget"
    if evaluations == 0:
        assert states == [refiner.init(TEXTS)]


def test_seconds_are_a_budget_too(refining, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(refinement.time, "monotonic", lambda: float(next(clock)))
    refiner = refining("gpt2", evaluations=1000, seconds=3)[2]
    states = list(map(read, followed(refiner)))
    assert [state.seconds for state in states] == [0, 1, 2, 3]
    assert refiner.stop(states[-1]) == "budget"
    assert refiner.stop(states[-2]) is None
    assert len(followed(refiner, state=states[1])) == 3, "what was spent before counts"


@pytest.mark.parametrize("nll_weight", [0.0, 0.05])
@pytest.mark.parametrize("labels", [(1, 1, 1), (0, 1, 1, 0)], ids=str)
def test_a_sweep_that_brings_nothing_is_a_local_optimum(refining, tiny_lm, nll_weight, labels):
    lm = tiny_lm("gpt2")
    texts = ["The film is", "A bad end", "It was fine", "I feel it was a bad end"][: len(labels)]
    allowed_V = torch.zeros(lm.vocab_size, dtype=torch.bool)
    for text in [*texts, "great happy sad feel story"]:
        allowed_V[lm.tokenizer(text).input_ids] = True
    settings = {"evaluations": 10_000, "proposals": 120, "nll_weight": nll_weight, "places": 5}
    lm, task, refiner = refining("gpt2", allowed_V=allowed_V, labels=labels, **settings)
    state = read(followed(refiner, texts)[-1])
    assert refiner.stop(state) == "sweep" and state.accepted > 0
    assert state.evaluations < 10_000 * len(texts)
    tried = 0
    for i, text in enumerate(state.texts):
        ids = task.text_ids(text)
        for t in range(1, len(ids) - 1):
            for token in allowed_V.nonzero()[:, 0].tolist():
                other = task.decode([*ids[:t], token, *ids[t + 1 :]])
                again = task.text_ids(other)
                if other in state.texts or len(again) > len(ids) or not bool(allowed_V[again].all()):
                    continue
                changed = [*state.texts[:i], other, *state.texts[i + 1 :]]
                given = {"start": texts, "labels": labels}
                value = objective_slowly(lm, task, DISTANCES[0], changed, nll_weight, **given)
                assert value > state.objective - 1e-6, (text, other)
                tried += 1
    assert tried > 50


def test_texts_of_one_and_two_tokens_have_no_places(refining):
    _, task, refiner = refining("gpt2", labels=(1, 0, 1))
    texts = ["a", "b", "9"]
    assert [len(task.text_ids(text)) for text in texts] == [1, 2, 2]
    state = read(followed(refiner, texts)[-1])
    assert state.texts == texts and state.evaluations == 0
    assert refiner.stop(state) == "sweep"


def test_places_are_all_inner_ones_once_and_fit_the_context_after_the_prompt(refining):
    lm, task, refiner = refining("gpt2")
    state = refiner.init(TEXTS)
    refiner._begin_sweep(state)
    lengths = [len(task.text_ids(text)) for text in TEXTS]
    inner = [(i, t) for i, length in enumerate(lengths) for t in range(1, length - 1)]
    assert sorted(state.places) == inner != state.places
    assert read(json.dumps(asdict(state))) == state
    room = lm.max_length - len(task.instruction_ids[LABEL])
    assert task.room > room + 2, "the template is shorter than the prompt"
    long = task.tokenizer.decode(task.text_ids("a b " * 99)[: task.room])
    state, refiner = RefinementState([long]), refining("gpt2", labels=[LABEL])[2]
    refiner._begin_sweep(state)
    assert max(t for _, t in state.places) == room
    refiner._propose(state, [(0, room)])


def test_places_fit_the_context_after_the_prompt_of_their_own_class(refining):
    labels = (1, 0, 1)
    prompts = (
        "A dull film. It makes me feel sad.",
        "A great film. It makes me feel happy. I feel it was a fine end:",
    )
    lm, task, refiner = refining("gpt2", prompts=prompts, labels=labels)
    rooms = [lm.max_length - len(ids) for ids in task.instruction_ids]
    assert task.room > rooms[0] + 2 > rooms[1] + 5
    long = task.tokenizer.decode(task.text_ids("a b " * 99)[: task.room])
    state = RefinementState([long, long[2:], long[4:]])
    refiner._begin_sweep(state)
    for i, label in enumerate(labels):
        assert max(t for j, t in state.places if j == i) == rooms[label]
    refiner._propose(state, [(i, rooms[label]) for i, label in enumerate(labels)])


# ---- resumption, seeds, memory


@pytest.mark.parametrize("nll_weight", [0.0, 0.05])
@pytest.mark.parametrize("more", [{}, MIXED], ids=["one class", "two classes"])
def test_resumed_from_any_state_it_goes_on_the_same(refining, nll_weight, more):
    settings = {"nll_weight": nll_weight, "evaluations": 20, **more}
    states = followed(refining("phi", **settings)[2])
    assert len(states) > 5
    for at, kept in enumerate(states):
        again = followed(refining("phi", **settings)[2], state=read(kept))
        assert len(again) == len(states) - at
        for mine, theirs in zip(map(read, again), map(read, states[at:]), strict=True):
            assert mine.objective == pytest.approx(theirs.objective, rel=1e-5)
            assert np.array(mine.trace) == pytest.approx(np.array(theirs.trace), rel=1e-5)
            mine.objective, mine.trace = theirs.objective, theirs.trace
            assert mine == theirs


@pytest.mark.parametrize("more", [{}, MIXED], ids=["one class", "two classes"])
def test_resumed_from_a_state_that_is_kept_it_goes_on_to_the_last_digit(refining, more):
    settings = {"nll_weight": 0.05, "evaluations": 60, **more}
    states = followed(refining("phi", **settings)[2])
    kept = [at for at in range(len(states)) if read(states[at]).step % FRESH == 0]
    assert len(kept) > 1 and read(states[kept[1]]).accepted
    for at in kept:
        again = followed(refining("phi", **settings)[2], state=read(states[at]))
        assert again == states[at:]


def test_every_draw_has_a_generator_of_its_own(refining):
    refiner, asked = refining("gpt2", labels=TWO, evaluations=40)[2], []
    plain = refiner.make_generator
    refiner.make_generator = lambda *purpose: asked.append(purpose) or plain(*purpose)
    states = list(map(read, followed(refiner)))
    last = states[-1]
    assert last.sweep > 1
    expected = [("sweep", at) for at in range(last.sweep)] + [("propose", at) for at in range(last.step)]
    assert Counter(asked) == Counter(expected)


def test_the_seed_decides(refining):
    first, same, other = (followed(refining("gpt2", seed=seed)[2]) for seed in (0, 0, 1))
    assert first == same
    assert read(first[-1]).texts != read(other[-1]).texts


@pytest.mark.parametrize("more", [{}, MIXED], ids=["one class", "two classes"])
def test_a_batch_too_many_is_halved_and_changes_nothing(refining, tiny_lm, more):
    plain = read(followed(refining("gpt2", nll_weight=0.05, **more)[2])[-1])
    limit, most, refused = BatchLimit(64), 2, []

    def check(_, args, kwargs):
        given = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        if len(given) > most:
            refused.append(len(given))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    refiner = refining("gpt2", nll_weight=0.05, limit=limit, **more)[2]
    hook = tiny_lm("gpt2").body.register_forward_pre_hook(check, with_kwargs=True)
    try:
        small = read(followed(refiner)[-1])
    finally:
        hook.remove()
    assert refused and limit.size <= most
    assert small.objective == pytest.approx(plain.objective, rel=1e-5)
    assert small.texts == plain.texts
