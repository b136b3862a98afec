"""A large pool of candidates: finding near duplicates, and selecting a set, in time and memory.

Factors are random, with what real ones have in common: r is a softmax less a one-hot vector, texts differ in some
directions (topics) more than in others, and the target is the mean of texts whose topics are not quite the
candidates'. Every measurement is a process of its own; the peak is all that was resident in it, Python and torch
(some 250 MiB) included.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from gradmm.gradients.factors import Factors
    from gradmm.solvers.selection import Candidates

V, D, TOPICS, BATCH, CHOSEN = 4096, 256, 16, 64, 50
SMALL, LARGE = 5_000, 100_000
SELECTIONS = [
    ("every pair of candidates first", "whole", SMALL, 0),
    ("rows of the chosen, in memory", "rows", SMALL, 2**31),
    ("rows of the chosen, in memory", "rows", LARGE, 2**31),
    ("rows of the chosen, 256 MiB of factors in memory", "rows", LARGE, 2**28),
]
TEXTS = {
    "words of a language": "8 to 25 of 8,000 words",
    "characters without spaces": "15 to 50 of 3,000 characters",
    "twenty openings": "one of 20 openings of 14 words, then 6 to 14 others",
    "sixty words": "6 to 16 of 60 words",
}


def table(console: Console) -> None:
    """Runs all cases and prints them."""
    out = Table(title=f"Near duplicates among {LARGE:,} texts (Jaccard index of word pairs of 0.8 or more)")
    for column in ("texts", "drawn from", "kept", "seconds", "peak MiB"):
        out.add_column(column, justify="left" if column in ("texts", "drawn from") else "right")
    for kind, drawn_from in TEXTS.items():
        found = _apart("texts", kind, LARGE)
        figures = (f"{found['kept']:,.0f}", f"{found['seconds']:.1f}", f"{found['peak'] / 2**20:,.0f}")
        out.add_row(kind, drawn_from, *figures)
    console.print(out)
    title = f"Selecting {CHOSEN} candidates, exchanges included; V {V:,}, D {D}, one pair each, float32"
    out = Table(title=title)
    figures_of = ("factors MiB", "prepared s", "selected s", "exchanges", "objective", "peak MiB")
    for column in ("how", "candidates", *figures_of):
        out.add_column(column, justify="left" if column == "how" else "right")
    for how, kind, size, held in SELECTIONS:
        found = _apart("select", kind, size, held)
        seconds = (f"{found['prepared']:.1f}", f"{found['selected']:.1f}")
        figures = (f"{found['exchanges']:.0f}", f"{found['objective']:.5f}", f"{found['peak'] / 2**20:,.0f}")
        out.add_row(how, f"{size:,}", f"{size * (V + D) * 4 / 2**20:,.0f}", *seconds, *figures)
    console.print(out)


def _apart(*case: str | int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.candidates", *map(str, case)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- near duplicates


def measure_texts(kind: str, size: int) -> dict[str, float]:
    """Seconds in which near duplicates are found, and how many texts are left."""
    from gradmm.solvers.pool import Pool

    texts, pool = list(_texts(kind, size, random.Random(0))), Pool()
    began = time.perf_counter()
    pool.add(texts, kind)
    kept = len(pool.candidates)
    return {"kept": kept, "seconds": time.perf_counter() - began, "peak": peak()}


def _texts(kind: str, size: int, draw: random.Random) -> Iterator[str]:
    """Words as frequent as in a language: the k-th has a share of 1/k (Zipf)."""
    fewest, most, vocabulary = {
        "words of a language": (8, 25, 8000),
        "characters without spaces": (15, 50, 3000),
        "twenty openings": (6, 14, 8000),
        "sixty words": (6, 16, 60),
    }[kind]
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(vocabulary)]
    if kind == "characters without spaces":
        words = draw.sample([chr(0x4E00 + k) for k in range(vocabulary)], vocabulary)
    shares = list(accumulate(1 / (k + 1) for k in range(vocabulary)))
    openings = [" ".join(draw.choices(words, k=14)) for _ in range(20)] if kind == "twenty openings" else [""]
    space = "" if kind == "characters without spaces" else " "
    for _ in range(size):
        drawn = draw.choices(words, cum_weights=shares, k=draw.randint(fewest, most))
        yield space.join([draw.choice(openings), *drawn]).strip()


# ---- selection


def measure_selection(kind: str, size: int, held_bytes: int) -> dict[str, float]:
    """Seconds in which candidates are made ready for selection (all but the drawing of factors) and selected."""
    import torch

    from gradmm.gradients.distances import FORMULAS
    from gradmm.solvers.kernels import FactorKernel
    from gradmm.solvers.selection import select

    with torch.no_grad():
        drawn = Drawn(size)
        began = time.perf_counter()
        kernel: Any = WholeKernel(drawn) if kind == "whole" else FactorKernel(drawn, "ignore", held_bytes)
        candidates = candidates_of(kernel, drawn)
        prepared = time.perf_counter() - began - drawn.seconds
        began = time.perf_counter()
        found = select(candidates, [CHOSEN], FORMULAS["cosine"])
    exchanges, seconds = len(found.trace) - 1, {"prepared": prepared, "selected": time.perf_counter() - began}
    return seconds | {"exchanges": exchanges, "objective": found.objective, "peak": peak()}


class WholeKernel:
    """All N x N inner products, computed at once: what selection does without."""

    def __init__(self, blocks: Drawn) -> None:
        from gradmm.gradients.factors import join_sets

        self.factors = join_sets(list(blocks))
        r_NV, h_ND = self.factors.r_KJV[:, 0], self.factors.h_KJD[:, 0]
        self.gram_NN = r_NV @ r_NV.T
        self.gram_NN *= h_ND @ h_ND.T
        self.diagonal_QN = self.gram_NN.diagonal()[None].double()

    def row(self, j: int) -> Tensor:
        """<g_i, g_j> for every i (1, N), float32."""
        return self.gram_NN[j][None]

    def align(self, target: Any) -> Tensor:
        """<g_i, T> for every i (1, N), float64."""
        found: Tensor = target.inner(self.factors).weight_K[None].double()
        return found


class Drawn:
    """Random factors, a batch at a time, and the seconds that drawing them took."""

    def __init__(self, size: int) -> None:
        import torch

        self.size, self.seconds = size, 0.0
        self.draw = torch.Generator().manual_seed(0)
        self._logits_V = 2 * torch.randn(V, generator=self.draw)
        self._state_D = torch.randn(D, generator=self.draw)
        self._topics_TV = torch.randn(TOPICS, V, generator=self.draw) / TOPICS**0.5
        self._topics_TD = torch.randn(TOPICS, D, generator=self.draw) / TOPICS**0.5

    def __iter__(self) -> Iterator[Factors]:
        for at in range(0, self.size, BATCH):
            began = time.perf_counter()
            batch = self.some(min(BATCH, self.size - at))
            self.seconds += time.perf_counter() - began
            yield batch

    def some(self, count: int, shift: float = 0.0) -> Factors:
        """Factors of so many texts of one label, whose topics may be shifted on average."""
        import torch

        from gradmm.gradients.factors import Factors

        topics_KT = torch.randn(count, TOPICS, generator=self.draw) + shift
        noise_KV = torch.randn(count, V, generator=self.draw)
        r_KV = torch.softmax(self._logits_V + topics_KT @ self._topics_TV + noise_KV, -1)
        r_KV[:, 0] -= 1  # the label's token
        h_KD = self._state_D + topics_KT @ self._topics_TD + torch.randn(count, D, generator=self.draw)
        return Factors(r_KV[:, None], h_KD[:, None], torch.ones(count, 1))


def candidates_of(kernel: Any, drawn: Drawn) -> Candidates:
    """With the mean of 200 other texts as the target, and nothing but the distance to count."""
    import torch

    from gradmm.gradients.factors import Factors
    from gradmm.gradients.target import ClassTarget
    from gradmm.solvers.selection import Candidates

    like_them = Drawn(0)
    like_them.draw.manual_seed(1)
    others = like_them.some(200, shift=0.5)
    r_1JV, h_1JD = (part.transpose(0, 1) for part in (others.r_KJV, others.h_KJD))
    target = ClassTarget(Factors(r_1JV, h_1JD, torch.full((1, 200), 1 / 200)), None)
    penalty_N, of_N = torch.zeros(drawn.size, dtype=torch.float64), torch.zeros(drawn.size, dtype=torch.long)
    return Candidates(kernel, kernel.align(target), target.square_norm().weight_K.double(), penalty_N, of_N)


def peak() -> float:
    """Bytes that were resident at most; of this process alone, which `getrusage` is not."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024.0 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    texts = verbs.add_parser("texts")
    texts.add_argument("kind", choices=TEXTS)
    texts.add_argument("size", type=int)
    selection = verbs.add_parser("select")
    selection.add_argument("kind", choices=["whole", "rows"])
    selection.add_argument("size", type=int)
    selection.add_argument("held_bytes", type=int)
    given = vars(parser.parse_args())
    measure: Any = {"texts": measure_texts, "select": measure_selection}[given.pop("verb")]
    print(json.dumps(measure(**given)))
