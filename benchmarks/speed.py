"""Speed and memory beside the algorithm taken literally, at the paper's settings, in one run on one machine.

Every measurement is a process of its own, so that peak memory is its own. Times are of one outer iteration
(projection, 50 inner steps, scoring): the median of those after the first, where there are several. A case's
`dtype` is ours; that of the literal algorithm is `literal_dtype`, and float32 otherwise.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

_PAPER = {"texts": 10, "length": 20, "inner": 50, "outer": 3}
CASES: dict[str, dict[str, Any]] = {
    "reviews6m, V 8,192, D 256": {**_PAPER, "model": "demo"},
    "GPT-2's size, 124 M": {**_PAPER, "model": "gpt2", "outer": 1},
    "GPT-2's size, ours in bfloat16": {**_PAPER, "model": "gpt2", "outer": 1, "dtype": "bfloat16"},
    "Phi-1.5's head, V 51,200, D 2,048 (1 layer)": {**_PAPER, "model": "phi-head", "inner": 2, "outer": 2},
}

# As long as the instructions that the paper uses: the uncached decode goes through it for every token.
INSTRUCTIONS = tuple(
    "You write film reviews. You are told what the reviewer thinks of the film, which is either that it is great "
    "or that it is bad, and you write one sentence that says so in words of your own. Write the way people do who "
    "have just seen a film and want to tell a friend about it: plainly, without ornament, and with an opinion "
    "that is really held. The sentence has to make sense alone, it has to be about a film, and nobody who reads "
    "it may be left in doubt of what the reviewer thinks. The reviewer thinks that the film is "
    f"{word}. The sentence:"
    for word in ("bad", "great")
)


def table(console: Console) -> None:
    """Runs all cases and prints them."""
    out = Table(title="One outer iteration at the paper's settings: literal against closed form")
    for column in (
        "case",
        "literal s",
        "closed form s",
        "ratio",
        "literal GiB",
        "closed form GiB",
        "distance differs",
    ):
        out.add_column(column, justify="left" if column == "case" else "right")
    for name, case in CASES.items():
        slow, fast = (apart(kind, case) for kind in ("literal", "closed"))
        ratio = slow["seconds"] / fast["seconds"]
        differs = abs(slow["objective"] - fast["objective"]) / slow["objective"]
        figures = (slow["seconds"], fast["seconds"], slow["gib"], fast["gib"])
        s1, s2, m1, m2 = (f"{figure:.2f}" for figure in figures)
        out.add_row(name, s1, s2, f"{ratio:.1f}x", m1, m2, f"{differs:.1e}")
    console.print(out)


def apart(kind: str, case: dict[str, Any]) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed", kind, json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(kind: str, case: dict[str, Any]) -> dict[str, float]:
    """One process's measurement."""
    import torch

    from gradmm.solvers.admm import Admm, AdmmConfig

    device = torch.device(case.get("device", "cpu"))
    own, width = problem(kind, case, device)
    blocks = case.get("blocks", 1) if kind == "closed" else 1
    x = torch.randn(blocks, case["texts"], case["length"], width, generator=torch.Generator().manual_seed(0))
    x = (1.4 * x / x.norm(dim=-1, keepdim=True)).to(device)
    paper = {"rho": 0.1, "rho_unit": "absolute", "order": "z_first", "clip": "block", "learning_rate": 0.008}
    solver = Admm(own, AdmmConfig.model_validate(paper | {"n_inner": case["inner"]}))
    state, seconds, objective = solver.init(x), [], 0.0
    for outer in range(case["outer"]):
        began = time.perf_counter()
        state = solver.step(state)
        last = float(state.objective_K[0])  # also waits for the device
        seconds.append(time.perf_counter() - began)
        if outer == 0:  # later iterations follow from the tokens chosen, where a tie may fall either way
            objective = last
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
    blocks = case.get("blocks", 1)  # taken literally, one after the other
    each = statistics.median(seconds[1:] or seconds) * (blocks if kind == "literal" else 1)
    return {"seconds": each, "gib": peak, "objective": objective}


def problem(kind: str, case: dict[str, Any], device: Any) -> tuple[Any, int]:
    """The matching problem of a case, `literal` or `closed` (ours), and the embeddings' width."""
    import torch

    from benchmarks.literal import LiteralMatching
    from gradmm.data.presets import get_task
    from gradmm.data.sources import load_data
    from gradmm.data.task import BoundTask
    from gradmm.data.vocabulary import allowed_tokens
    from gradmm.decoding import PromptCache
    from gradmm.gradients.distances import DistanceConfig
    from gradmm.gradients.exact_target import compute_target
    from gradmm.memory import BatchLimit
    from gradmm.solvers.matching import GradientMatching
    from gradmm.solvers.projection import ProjectionConfig, Projector, Vocabulary

    dtype = case.get("dtype" if kind == "closed" else "literal_dtype", "float32")
    lm = random_model(case["model"], device, dtype, kind == "closed" and case.get("torch_compile", False))
    task = BoundTask(
        get_task("sst2").model_copy(update={"instructions": INSTRUCTIONS}), lm.tokenizer, lm.max_length
    )
    rows = load_data("demo").texts_of(1)[:25]
    target = compute_target(lm, task, [[rows[:1]], [rows]])
    allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size).to(device)
    width = lm.embeddings_VE.shape[1]
    if kind == "literal":
        biased = lm.head.bias_V is not None
        dense = [(w, b if biased else None) for w, b in (c.materialised() for c in target.classes)]
        return LiteralMatching(lm, task, dense, allowed_V, [1]), width
    settings = ProjectionConfig(order="nearest_then_probable", metric="cosine", k=200, end_sentence=False)
    blocks = case.get("blocks", 1)
    prompts = PromptCache(lm, task.instruction_ids, BatchLimit(max(64, blocks * case["texts"])))
    projector = Projector(prompts, lm.embeddings_VE, Vocabulary(allowed_V, None, None), settings)
    lengths = torch.full((blocks, case["texts"]), case["length"])
    distance = DistanceConfig(bias="separate")
    return GradientMatching(lm, task, target, distance, projector, [1] * blocks, lengths), width


def random_model(name: str, device: Any, dtype: str = "float32", torch_compile: bool = False) -> Any:
    """A model of a real one's size with random weights, on the packaged tokenizer; `demo` is the packaged one.

    Args:
        name: `demo`, `gpt2` (124 M parameters), `phi-1.5` (1.4 B), or `phi-head`, one layer of it.
        device: where.
        dtype: of the weights.
        torch_compile: whether passes that are differentiated are compiled.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM

    from gradmm.loading import DTYPES
    from gradmm.models import LanguageModel, load_model

    demo = load_model("demo", device=str(device), dtype=dtype)
    if name == "demo":
        return demo
    torch.manual_seed(0)
    sizes: Any = {"vocab_size": 51_200, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32}
    with torch.device(device):
        if name == "gpt2":
            model: Any = GPT2LMHeadModel(GPT2Config())
        else:
            model = PhiForCausalLM(PhiConfig(**sizes, num_hidden_layers=1 if name == "phi-head" else 24))
    return LanguageModel(model.to(DTYPES[dtype]), demo.tokenizer, name, torch_compile)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["literal", "closed"])
    parser.add_argument("case", type=json.loads)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.kind, arguments.case)))
