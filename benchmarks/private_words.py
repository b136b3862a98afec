"""What noise leaves of shares of words: how far the LM's words are from the rows', before and after a tilt.

For every epsilon: the Kullback-Leibler divergence of the shares of words in the rows from those in what the LM
writes (nats, mean over classes), where the LM's are tilted in one whole step by what one release says. Half of the
budget is for words, as by default. delta is 1e-5, neighbours differ by a row more or less.

    python -m benchmarks.private_words TRAIN.jsonl.gz TASK [--form lowercase+spaced_punctuation]
"""

from __future__ import annotations

import argparse
import copy

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.material import material
from benchmarks.private import DELTA
from gradmm.data.task import BoundTask
from gradmm.gradients.denoising import denoised
from gradmm.gradients.private_unigrams import PrivateUnigrams, public_words_clip, released_unigrams
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.unigrams import TokenShares, UnigramCounter, Unigrams
from gradmm.privacy.config import PrivacyConfig
from gradmm.privacy.mechanism import SystemNoise
from gradmm.privacy.planning import make_plan, shares_of
from gradmm.solvers.forms import AS_WRITTEN, Form
from gradmm.solvers.tilting import Tilt

_LEAST = 1e-6  # share of a word that the LM never wrote


def main() -> None:
    """Prints the table of one data set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_words")
    parser.add_argument("data", nargs=2, help="rows, task")
    parser.add_argument("--form", default=AS_WRITTEN, help="that the LM's texts take; the rows' own")
    parser.add_argument("--texts", type=int, default=1000, help="that the LM writes for each class")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[0.5, 1, 2, 4, 8])
    arguments = parser.parse_args()
    file, task = arguments.data
    own = material(file, task, {"pool": {"texts_per_text": arguments.texts}, "writer": {"rounds": 1}})
    form, size = Form(arguments.form), len(own.lm.embeddings_VE)
    shares, classes = TokenShares(own.task, size), range(own.rows.num_classes)
    written = [own.task.texts_ids([form(text) for text in texts]) for texts in own.lm_texts]
    rows = [own.task.texts_ids(own.rows.texts_of(label)) for label in classes]
    clip, counts = public_words_clip(shares, [ids for texts in written for ids in texts]), own.rows.counts()
    sums = PrivateUnigrams(shares, len(rows), clip)
    for label, texts in enumerate(rows):
        for ids in texts:
            sums.add(label, ids)
    wanted, before = ([words(counted(own.task, size, ids), shares) for ids in sets] for sets in (rows, written))
    found = [counted(own.task, size, ids, clip) for ids in written]

    def left(targets: list[Unigrams]) -> float:
        return sum(divergence(wanted[c], tilted(before[c], found[c], targets[c], shares)) for c in classes) / len(
            rows
        )

    out = Table("shares of words that tilt", "noise", "nats")
    out.add_row("none", "", f"{sum(map(divergence, wanted, before)) / len(rows):.3f}")
    for epsilon in arguments.epsilons:
        given = {"target_epsilon": epsilon, "target_delta": DELTA, "neighboring_relation": "add_or_remove_one"}
        privacy = PrivacyConfig.model_validate({**given, "num_rows": sum(counts)})
        plan = make_plan(privacy, shares_of(privacy, with_words=True))
        means_CW, std_C = copy.deepcopy(sums).release(plan, [float(n) for n in counts], SystemNoise())
        drawn = [released_unigrams(shares, m, s, clip) for m, s in zip(means_CW, std_C.tolist(), strict=True)]
        nothing = torch.zeros(1, 1), torch.zeros(1)
        target = denoised(ReleasedTarget(tuple(ClassTarget(None, nothing, unigrams=one) for one in drawn)))
        released = [own.unigrams for own in target.classes if own.unigrams is not None]
        out.add_row(f"epsilon {epsilon:g}", f"{float(std_C.max()):.1e}", f"{left(released):.3f}")
    out.add_row("exact", "", f"{left([counted(own.task, size, ids, clip) for ids in rows]):.3f}")
    Console().print(out)


def counted(task: BoundTask, size: int, texts_ids: list[list[int]], clip: float | None = None) -> Unigrams:
    """Shares of tokens in texts."""
    counter = UnigramCounter(task, size, clip)
    counter.add(texts_ids)
    return counter.mean(fewest_rows=1)


def words(found: Unigrams, shares: TokenShares) -> Tensor:
    """Shares among words alone (V), none of them 0."""
    own_V = (found.share_V + _LEAST).masked_fill(~shares.words_V, 0.0)
    return own_V / own_V.sum()


def tilted(before_V: Tensor, found: Unigrams, target: Unigrams, shares: TokenShares) -> Tensor:
    """Shares of words after one whole step of the tilt."""
    tilt = Tilt(target, shares.words_V, torch.arange(len(before_V)), 1.0)
    tilt.learn(found)
    after_V = before_V * tilt.bias_V.double().exp()
    return after_V / after_V.sum()


def divergence(wanted_V: Tensor, other_V: Tensor) -> float:
    """Kullback-Leibler divergence, nats."""
    return float(torch.special.xlogy(wanted_V, wanted_V / other_V.clamp_min(1e-300)).sum())


if __name__ == "__main__":
    main()
