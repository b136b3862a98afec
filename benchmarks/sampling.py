"""Drawing tokens from the nucleus: by rejection, as `gradmm.decoding` does, beside sorting the vocabulary.

CPU seconds in this process, with one thread: machines that are shared count time that was not theirs otherwise.
"""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.table import Table

from gradmm import decoding
from gradmm.decoding import PromptCache, sample
from gradmm.models import load_model

TEXTS, STEPS = 64, 34
TOP_PS = (0.95, 0.5)


def table(console: Console) -> None:
    """Samples texts both ways and prints what it took."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lm = load_model("demo")
    prompts = PromptCache(lm, [lm.tokenizer("A positive movie review:").input_ids])
    out = Table(title=f"{TEXTS} texts of {STEPS} tokens, V {lm.vocab_size:,}, one thread")
    for column in ("top-p", "tries", "CPU s", "of it drawing"):
        out.add_column(column, justify="right")
    for top_p in TOP_PS:
        for tries, words in ((1, "0: sorted"), (decoding._TRIES, str(decoding._TRIES - 1))):
            whole, drawing = measured(prompts, top_p, tries)
            out.add_row(f"{top_p}", words, f"{whole:.2f}", f"{drawing:.2f}")
    console.print(out)
    torch.set_num_threads(threads)


def measured(prompts: PromptCache, top_p: float, tries: int) -> tuple[float, float]:
    """CPU seconds of sampling, and of the draws in it; the better of two."""
    own, spent = decoding.draw, [0.0]

    def draw(probabilities_NV: torch.Tensor, uniform_NR: torch.Tensor, top_p: float) -> torch.Tensor:
        began = time.process_time()
        token_N = own(probabilities_NV, uniform_NR[:, -tries:], top_p)
        spent[0] += time.process_time() - began
        return token_N

    decoding.draw = draw  # type: ignore[assignment]
    try:
        found = []
        for seed in range(2):
            spent[0], began = 0.0, time.process_time()
            labels = torch.zeros(TEXTS, dtype=torch.long)
            allowed_V = torch.ones(prompts.lm.vocab_size, dtype=torch.bool)
            sample(prompts, labels, STEPS, allowed_V, torch.Generator().manual_seed(seed), top_p=top_p)
            found.append((time.process_time() - began, spent[0]))
    finally:
        decoding.draw = own
    return min(found)
