"""Where ADMM starts: texts written by the LM after the class's prompt, or random vectors (the paper).

Shape suffixes: K blocks, B texts of a block, T text positions, E embedding size.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import text_ends
from gradmm.decoding import PromptCache, sample
from gradmm.errors import GradmmError

log = logging.getLogger("gradmm")
_SENTENCE_END = re.compile(r"[.!?]['\")]?(?=\s|$)")
_ROUNDS = 20  # of resampling, before an LM that ends no sentence is given up on
SPARE = 2  # tokens written beyond what is asked for: text and continuation are not cut into the same everywhere


class LengthConfig(BaseModel):
    """How many tokens a text has."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    distribution: Literal["natural", "fixed", "uniform", "normal"] = "natural"
    """`natural`: the LM's own sentences, cut at the last end of a sentence (or of the text, if the LM ended it)
    before a limit drawn uniformly between `min_tokens` and `max_tokens`, or at the first one, if that comes later
    but before `max_tokens`; `fixed`: `max_tokens`; `uniform` between the two; `normal` around `mean` with `std`,
    kept between the two."""
    min_tokens: int = Field(8, ge=1)
    """Shortest text."""
    max_tokens: int = Field(32, ge=1)
    """Longest text."""
    mean: float = 20.0
    """Mean of `normal`."""
    std: float = Field(6.0, ge=0)
    """Standard deviation of `normal`."""

    @model_validator(mode="after")
    def _ordered(self) -> LengthConfig:
        if self.distribution != "fixed" and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}")
        return self

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Lengths (count,); for `natural` the limits."""
        if self.distribution == "fixed":
            return torch.full((count,), self.max_tokens)
        if self.distribution == "normal":
            drawn = self.mean + self.std * torch.randn(count, generator=generator)
            return drawn.round().long().clamp(self.min_tokens, self.max_tokens)
        return torch.randint(self.min_tokens, self.max_tokens + 1, (count,), generator=generator)


class InitialConfig(BaseModel):
    """What ADMM starts from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: Literal["lm", "random"] = "lm"
    """`lm`: texts that the LM writes after the class's prompt; `random`: normal vectors (the paper)."""
    candidates: int = Field(8, ge=1)
    """Blocks drawn for each block that is kept; the one with the lowest objective is kept."""
    scale: float | None = Field(None, gt=0)
    """L2 norm that random vectors are scaled to; None takes the mean norm of the embedding table."""
    temperature: float = Field(1.0, gt=0)
    """Of the LM's texts."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus of the LM's texts."""


class Start(NamedTuple):
    """Where some blocks start."""

    x_KBTE: Tensor
    lengths_KB: Tensor
    codes_KBT: Tensor | None
    """The tokens, where the vectors are those of a text."""


def write_texts(
    task: BoundTask,
    prompts: PromptCache,
    allowed_V: Tensor,
    labels: Sequence[int],
    lengths: LengthConfig,
    config: InitialConfig,
    generator: torch.Generator,
    stops: Sequence[str] = (),
    bias_V: Tensor | None = None,
    fewer: bool = False,
) -> list[list[int]]:
    """Texts that the LM writes after each label's prompt, as tokens of the text in its place.

    Args:
        task: the rendering.
        prompts: the class prompts' caches.
        allowed_V: tokens that may be drawn (V,).
        labels: class of each text.
        lengths: how long they may become.
        config: temperature and nucleus.
        generator: random generator on the CPU.
        stops: where a text ends, such as a line break after prompts that are lists.
        bias_V: is added to the LM's logits (V,).
        fewer: whether half of the texts will do, where the LM comes to no end with the others.

    Raises:
        GradmmError: if the LM writes no usable text, or too few.
    """
    texts: list[list[int]] = [[] for _ in labels]
    limits = lengths.draw(len(labels), generator).tolist()
    missing, natural = list(range(len(labels))), lengths.distribution == "natural"
    ends_V = text_ends(prompts.lm.tokenizer, len(allowed_V)).to(allowed_V.device) & natural
    ends = set(ends_V.nonzero()[:, 0].tolist())  # a text of given length ends where that is reached
    for _ in range(_ROUNDS):
        own = torch.tensor([labels[i] for i in missing], device=prompts.lm.device)
        steps = SPARE + (lengths.max_tokens if natural else max(limits[i] for i in missing))
        drawn = sample(
            prompts, own, steps, allowed_V | ends_V, generator, config.temperature, config.top_p, bias_V
        )
        for i, ids in zip(missing, drawn.tolist(), strict=True):
            over = next((t for t, token in enumerate(ids) if token in ends), None)
            whole = task.decode(ids[:over])
            text = _before(whole, stops)
            kept = _cut(task, text, over is not None or text != whole, limits[i], lengths)
            # Tokenised again, allowed tokens may have become one that is banned.
            texts[i] = kept if bool(allowed_V[kept].all()) else []
        missing = [i for i in missing if not texts[i]]
        if not missing:
            return texts
    if fewer and 2 * len(missing) <= len(labels):
        counts = (len(missing), len(labels), _ROUNDS)
        log.info(
            "%s came to no end with %d of %d texts in %d tries, and goes on without", prompts.lm.name, *counts
        )
        return [text for text in texts if text]
    wanted = (
        f"{lengths.min_tokens} to {lengths.max_tokens} tokens that end a sentence" if natural else "their length"
    )
    raise GradmmError(
        f"the LM {prompts.lm.name!r} did not write {len(missing)} of {len(labels)} texts of {wanted} in {_ROUNDS} "
        "tries; raise lengths.max_tokens, loosen bans, or use lengths.distribution=uniform"
    )


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def _cut(task: BoundTask, text: str, has_ended: bool, limit: int, lengths: LengthConfig) -> list[int]:
    """The tokens kept of a text that the LM wrote, and may have ended; empty to have another one written."""
    if lengths.distribution != "natural":
        ids = task.text_ids(text)[:limit]
        return ids if len(ids) == limit else []
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if has_ended and text[ends[-1] if ends else 0 :].strip():
        ends.append(len(text.rstrip()))
    tokens = [task.text_ids(text[:end]) for end in ends]
    best = [ids for ids in tokens if lengths.min_tokens <= len(ids) <= limit][-1:]
    # A limit below the first sentence's end would starve; any whole sentence that fits will do.
    best = best or [ids for ids in tokens[:1] if lengths.min_tokens <= len(ids) <= lengths.max_tokens]
    return best[0] if best else []


def as_block(embeddings_VE: Tensor, texts: Sequence[Sequence[int]]) -> Start:
    """Tokenised texts as the vectors of one block, padded with zeros."""
    lengths_B = torch.tensor([len(ids) for ids in texts])
    width = int(lengths_B.max())
    codes_BT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts], device=embeddings_VE.device)
    inside_BT = torch.arange(width)[None] < lengths_B[:, None]
    x_BTE = embeddings_VE[codes_BT].float() * inside_BT.to(embeddings_VE.device).unsqueeze(-1)
    return Start(x_BTE[None], lengths_B[None], codes_BT[None])


def random_block(
    embeddings_VE: Tensor, size: int, lengths: LengthConfig, config: InitialConfig, generator: torch.Generator
) -> Start:
    """One block of normal vectors, scaled to the norm that the settings ask for."""
    lengths_B, device = lengths.draw(size, generator), embeddings_VE.device
    x_BTE = _normal((size, int(lengths_B.max()), embeddings_VE.shape[1]), generator, device)
    scale = config.scale or float(embeddings_VE.float().norm(dim=1).mean())
    x_BTE *= scale / x_BTE.norm(dim=-1, keepdim=True)
    x_BTE *= (torch.arange(x_BTE.shape[1])[None] < lengths_B[:, None]).to(device).unsqueeze(-1)
    return Start(x_BTE[None], lengths_B[None], None)


def _normal(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Normal numbers on a device. A GPU draws its own: the paper's 10,000 blocks take a processor a minute."""
    if device.type != "cuda":
        return torch.randn(shape, generator=generator).to(device)
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def pick(start: Start, block: int) -> Start:
    """One block of several, without the padding that the others needed."""
    one = slice(block, block + 1)
    width = int(start.lengths_KB[one].max())
    codes_1BT = None if start.codes_KBT is None else start.codes_KBT[one, :, :width]
    return Start(start.x_KBTE[one, :, :width], start.lengths_KB[one], codes_1BT)


def join(starts: Sequence[Start]) -> Start:
    """Blocks of equal size as one state, padded to the longest text."""
    width = max(start.x_KBTE.shape[2] for start in starts)
    x = [torch.nn.functional.pad(s.x_KBTE, (0, 0, 0, width - s.x_KBTE.shape[2])) for s in starts]
    codes = [
        torch.nn.functional.pad(s.codes_KBT, (0, width - s.codes_KBT.shape[2]))
        for s in starts
        if s.codes_KBT is not None
    ]
    lengths_KB = torch.cat([start.lengths_KB for start in starts])
    return Start(torch.cat(x), lengths_KB, torch.cat(codes) if len(codes) == len(starts) else None)
