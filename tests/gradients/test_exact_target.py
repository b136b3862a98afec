"""`gradmm.gradients.exact_target`, interrupted: the sum over a class goes on from where it was kept."""

from __future__ import annotations

import pytest
import torch

from gradmm.gradients.exact_target import Unfinished, class_target
from gradmm.gradients.losses import VerbaliserLoss
from gradmm.gradients.spaces import Space
from gradmm.memory import BatchLimit
from store_tools import Kept

TEXTS = [
    f"The {what} {how}." for what in ("film", "end", "story") for how in ("is great", "was bad", "I feel", "it")
]
LABEL = 1


def windows(size, upto=None):
    """Rows, read window by window; a run that is killed does not come to the end."""
    for number, start in enumerate(range(0, len(TEXTS), size)):
        if number == upto:
            raise KeyboardInterrupt
        yield TEXTS[start : start + size]


@pytest.fixture(params=["vocabulary", "verbalisers"])
def target(request, tiny_lm, tiny_task):
    """Computes it; a space of the verbalisers' loss is dense from the first rows on, the vocabulary's later."""
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    space = Space() if request.param == "vocabulary" else Space((), VerbaliserLoss.of(task))

    def compute(rows, unfinished=None, progress=lambda rows: None, with_unigrams=True):
        return class_target(lm, task, LABEL, rows, BatchLimit(2), progress, space, with_unigrams, unfinished)

    return compute


def same(one, other):
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("with_unigrams", [True, False])
def test_wherever_it_is_interrupted_it_ends_the_same(target, with_unigrams):
    whole, counted = target(windows(3), with_unigrams=with_unigrams), list[int]()
    for upto in range(4):
        folder = Kept()
        with pytest.raises(KeyboardInterrupt):
            target(windows(3, upto), Unfinished(folder, "part", seconds=0), with_unigrams=with_unigrams)
        counted.clear()
        again = target(windows(3), Unfinished(folder, "part", seconds=0), counted.append, with_unigrams)
        assert same(again, whole) and sum(counted) == len(TEXTS)


def test_rows_that_are_in_it_are_not_computed_again(target):
    folder = Kept()
    with pytest.raises(KeyboardInterrupt):
        target(windows(3, 3), Unfinished(folder, "part", seconds=0))
    kept = folder.load_state("part")
    first = 0 if kept is None else kept[1]["rows"]
    assert kept is None or first == 9
    counted = list[int]()
    target(windows(3), Unfinished(folder, "part", seconds=0), counted.append)
    assert counted[0] == (first or 2), "all that was kept at once, or a batch"


def test_windows_of_another_size_count_every_row_once(target):
    """As where the batch size was changed in between."""
    folder, whole = Kept(), target(windows(3))
    with pytest.raises(KeyboardInterrupt):
        target(windows(3, 3), Unfinished(folder, "part", seconds=0))
    again = target(windows(5), Unfinished(folder, "part", seconds=0))
    for found, expected in zip(again.materialised(), whole.materialised(), strict=True):
        torch.testing.assert_close(found, expected)
    assert (
        torch.allclose(again.unigrams.share_V, whole.unigrams.share_V)
        and again.unigrams.floor == whole.unigrams.floor
    )


def test_it_is_kept_every_so_often(tiny_lm, tiny_task):
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    now, folder, kept = [0.0], Kept(), list[int]()
    save = folder.save_state
    folder.save_state = lambda name, tensors, facts: (kept.append(facts["rows"]), save(name, tensors, facts))

    def passing():
        for window in windows(2):
            now[0] += 20
            yield window

    space = Space((), VerbaliserLoss.of(task))
    unfinished = Unfinished(folder, "part", seconds=60, clock=lambda: now[0])
    class_target(lm, task, LABEL, passing(), BatchLimit(2), space=space, unfinished=unfinished)
    assert kept == [6, 12]
