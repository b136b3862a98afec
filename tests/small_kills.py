"""`scripts/kill_runs.py` with a random model, whose runs take a fifth of the time; the same arguments."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import torch

import gradmm
import kill_runs
from gradmm.config import GenerateConfig
from gradmm.models import LanguageModel
from tiny_models import make_model, make_tokenizer

ROWS = [
    (f"The film is {word}, a story {n}.", label) for n in range(3) for label, word in enumerate(("bad", "fine"))
]


def make_bench(output: Path) -> kill_runs.Bench:
    """As `kill_runs` makes it, but for the model and the rows."""
    torch.set_num_threads(1)
    lm = LanguageModel(make_model("gpt2"), make_tokenizer(), "tiny gpt2")
    config = GenerateConfig.model_validate(kill_runs.SMALL)
    return kill_runs.Bench(output, lambda folder: gradmm.generate(lm, "sst2", ROWS, config, folder))


if __name__ == "__main__":
    kill_runs.make_bench = make_bench
    sys.exit(kill_runs.main())
