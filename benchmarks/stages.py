"""Every kind of stage beside its literal oracle and beside what the machine can multiply.

| stage | taken literally |
|---|---|
| x-update | one inner step, differentiated through the head's materialised gradient |
| projection | one `generate` without a cache for every token, the vocabulary sorted twice |
| target | one row at a time, its gradient a matrix of V x D |
| selection | the gradients of all candidates as matrices, summed with each anew for every text chosen |
| sampling | transformers' own `generate` with its cache |

Every measurement is a process of its own with one thread; CPU seconds, the faster of two tries, or of what
takes long the first. What both find is compared, but for samples, which are drawn otherwise.

    python -m benchmarks.stages [demo | gpt2]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.candidates import peak
from benchmarks.sampling import STEPS, TEXTS

CASE = {"texts": 10, "length": 20}
ROWS, CANDIDATES, CHOSEN = 50, 200, 10
STAGES = ("x-update", "projection", "target", "selection", "sampling")
_LONG = 5.0  # seconds, beside which warming up is nothing
Work = tuple[Callable[[], list[float]], float | None]
"""What is timed, which returns what it found; and its FLOP, where they are known."""


def main() -> None:
    """Prints the table; with `--measure`, what a process measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages")
    parser.add_argument("model", nargs="?", default="demo", choices=["demo", "gpt2"])
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "STAGE"))
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.model, *arguments.measure)))
    else:
        table(Console(width=140), arguments.model)


def table(console: Console, model: str = "demo") -> None:
    """Runs all stages both ways and prints them."""
    out = Table(title=f"Stages, {model}, one thread: literal against ours")
    columns = ("stage", "literal CPU s", "ours", "ratio", "of the peak", "literal MiB", "ours MiB", "differs")
    for column in columns:
        out.add_column(column, justify="left" if column == "stage" else "right")
    for stage in STAGES:
        slow, fast = (_apart(model, kind, stage) for kind in ("literal", "closed"))
        share = "" if fast["share"] is None else f"{fast['share']:.0%}"
        sizes = [f"{one['peak'] / 2**20:,.0f}" for one in (slow, fast)]
        differs = "" if stage == "sampling" else f"{_difference(slow['found'], fast['found']):.1e}"
        seconds = f"{slow['seconds']:.3g}", f"{fast['seconds']:.3g}", f"{slow['seconds'] / fast['seconds']:.1f}x"
        out.add_row(stage, *seconds, share, *sizes, differs)
    console.print(out)


def _difference(a: list[float], b: list[float]) -> float:
    """Relative, in the Euclidean norm."""
    return math.dist(a, b) / math.hypot(*a)


def _apart(*case: str) -> dict[str, Any]:
    model, kind, stage = case
    command = [sys.executable, "-m", "benchmarks.stages", model, "--measure", kind, stage]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(model: str, kind: str, stage: str) -> dict[str, Any]:
    """One process's measurement."""
    import torch

    from gradmm.throughput import matrix_peak

    torch.set_num_threads(1)
    make = {
        "x-update": x_update,
        "projection": projection,
        "target": target,
        "selection": selection,
        "sampling": sampling,
    }[stage]
    work, flop = make(model, kind)
    seconds, found = math.inf, list[float]()
    for _ in range(2):
        began = time.process_time()
        found = work()
        seconds = min(seconds, time.process_time() - began)
        if seconds > _LONG:
            break
    resident = peak()
    share = None
    if flop is not None:
        share = flop / seconds / matrix_peak(torch.device("cpu"), torch.float32, time.process_time)
    return {"seconds": seconds, "share": share, "peak": resident, "found": found}


def x_update(model: str, kind: str) -> Work:
    """One inner step; found are the derivatives of the first text."""
    import torch

    problem, x = _problem(model, kind)
    x.requires_grad_()

    def work() -> list[float]:
        (found,) = torch.autograd.grad(problem.objective(x).sum(), x)
        derivatives: list[float] = found[0, 0].flatten().tolist()
        return derivatives

    return work, _flop(problem, "x-update")


def projection(model: str, kind: str) -> Work:
    """A block's; found are its tokens."""
    problem, x = _problem(model, kind)
    return lambda: [float(token) for token in problem.project(x)[1].flatten().tolist()], _flop(problem, "writing")


def target(model: str, kind: str) -> Work:
    """Of a class's rows; found is the matrix's row of the label's token."""
    import torch

    from benchmarks.literal import LiteralMatching
    from benchmarks.speed import random_model
    from gradmm.config import GenerateConfig
    from gradmm.data.presets import get_task
    from gradmm.data.sources import load_data
    from gradmm.data.task import BoundTask
    from gradmm.gradients.exact_target import class_target
    from gradmm.memory import BatchLimit
    from gradmm.workload import GRADIENTS, Workload

    lm = random_model(model, torch.device("cpu"))
    task = BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length)
    texts = load_data("demo").texts_of(1)[:ROWS]
    load = Workload(lm, task, GenerateConfig.model_validate({"space": {"loss": "vocabulary"}}))
    flop = sum(load.each(GRADIENTS, len(ids)) for ids in task.texts_ids(texts))
    row = task.label_ids[1][0]
    if kind == "closed":

        def ours() -> list[float]:
            matrix_VD, _ = class_target(lm, task, 1, [texts], BatchLimit(64)).materialised()
            return matrix_VD[row].tolist()

        return ours, flop
    literal = LiteralMatching(lm, task, [], torch.ones(lm.vocab_size, dtype=torch.bool), [1])

    def work() -> list[float]:
        total = torch.zeros_like(literal.head.weight)
        for ids in task.texts_ids(texts):
            rendered = torch.tensor([[*task.prefix_ids, *ids, *task.suffix_ids]])
            logits_1V = literal.model(rendered).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(logits_1V, torch.tensor([row]))
            total += torch.autograd.grad(loss, literal.head.weight)[0]
        return (total[row] / len(texts)).tolist()

    return work, flop


def selection(_: str, kind: str) -> Work:
    """Greedy, of random candidates (as in `benchmarks.candidates`); found are those chosen."""
    import torch

    from benchmarks.candidates import Drawn, candidates_of
    from gradmm.gradients.distances import FORMULAS
    from gradmm.gradients.factors import join_sets
    from gradmm.solvers.kernels import FactorKernel
    from gradmm.solvers.selection import select

    blocks = list(Drawn(CANDIDATES))

    def ours() -> list[float]:
        with torch.no_grad():
            kernel = FactorKernel(blocks, "ignore", 2**31)
            made = candidates_of(kernel, Drawn(CANDIDATES))
            return [float(i) for i in select(made, [CHOSEN], FORMULAS["cosine"], exchange=False).indices]

    def literal() -> list[float]:
        held: dict[str, Any] = {}
        candidates_of(_Caught(held), Drawn(CANDIDATES))
        target_VD = held["target"].materialised()[0]
        dense_NVD, chosen = join_sets(blocks).dense()[0], list[int]()
        total_VD = torch.zeros_like(target_VD)
        for _ in range(CHOSEN):
            left = [i for i in range(CANDIDATES) if i not in chosen]
            chosen.append(max(left, key=lambda i: float(_cosine(total_VD + dense_NVD[i], target_VD))))
            total_VD = total_VD + dense_NVD[chosen[-1]]
        return [float(i) for i in chosen]

    return (ours if kind == "closed" else literal), None


class _Caught:
    """In a kernel's place: catches the target that candidates are aligned with."""

    def __init__(self, held: dict[str, Any]) -> None:
        self._held = held

    def align(self, target: Any) -> Any:
        """No alignment."""
        import torch

        self._held["target"] = target
        return torch.zeros(1, CANDIDATES, dtype=torch.float64)


def _cosine(a: Any, b: Any) -> Any:
    return (a * b).sum() / (a.norm() * b.norm())


def sampling(model: str, kind: str) -> Work:
    """Texts of 34 tokens behind a short prompt."""
    import torch

    from benchmarks.speed import random_model
    from gradmm.arithmetic import arithmetic_of
    from gradmm.decoding import PromptCache, sample

    lm, steps = random_model(model, torch.device("cpu")), STEPS
    prompt = lm.tokenizer("A positive movie review:").input_ids
    flop = arithmetic_of(lm).decode(TEXTS, len(prompt), steps)
    if kind == "closed":
        prompts, labels_N = PromptCache(lm, [prompt]), torch.zeros(TEXTS, dtype=torch.long)
        allowed_V = torch.ones(lm.vocab_size, dtype=torch.bool)

        def ours() -> list[float]:
            sample(prompts, labels_N, steps, allowed_V, torch.Generator().manual_seed(0), top_p=0.95)
            return []

        return ours, flop

    def literal() -> list[float]:
        asked: dict[str, Any] = {"do_sample": True, "top_p": 0.95, "top_k": 0, "pad_token_id": 0}
        ids = torch.tensor([prompt] * TEXTS)
        mask = torch.ones_like(ids)
        lm.model.generate(ids, attention_mask=mask, min_new_tokens=steps, max_new_tokens=steps, **asked)
        return []

    return literal, flop


def _problem(model: str, kind: str) -> tuple[Any, Any]:
    """The matching problem of one block at the paper's settings, and vectors that are no text."""
    import torch

    from benchmarks.speed import problem

    own, width = problem(kind, {**CASE, "model": model}, torch.device("cpu"))
    x = torch.randn(1, CASE["texts"], CASE["length"], width, generator=torch.Generator().manual_seed(0))
    return own, 1.4 * x / x.norm(dim=-1, keepdim=True)


def _flop(problem: Any, kind: str) -> float | None:
    """Of ours; the literal algorithm multiplies more."""
    from gradmm.config import GenerateConfig
    from gradmm.workload import Workload

    if not hasattr(problem, "lm"):
        return None
    load = Workload(problem.lm, problem.task, GenerateConfig.model_validate({"space": {"loss": "vocabulary"}}))
    return CASE["texts"] * load.each(kind, CASE["length"])


if __name__ == "__main__":
    main()
