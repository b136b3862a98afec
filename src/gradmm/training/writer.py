"""The writer: a copy of the LM, tuned on texts that were chosen, so that it writes more of their kind.

Where the LM knows nothing of a domain, no sample of it is near the target, however many there are. So writing and
choosing take turns: what was chosen from one round's texts is what the writer learns before the next. This is the
cross-entropy method (Rubinstein, 1999; de Boer et al., 2005): the distribution that samples is moved by maximum
likelihood to its best samples. Which those are, the released target tells; no real row has a part in it.

Only who writes is tuned. Gradients, readability and labels are computed at the LM's own weights.

Shape suffixes: N texts, S sequence length, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.errors import NonFiniteError
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from gradmm.training.trainable import LoraSettings, TrainableModel

Example = tuple[Sequence[int], Sequence[int]]
"""Tokens of a prompt, and of the text that follows it."""
_UNCOUNTED = -100
_MAX_NORM = 1.0  # that gradients are clipped to, as transformers' Trainer does


class WriterConfig(BaseModel):
    """What the writer learns before it writes, how often it is tuned on what was chosen, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    files: tuple[str, ...] = ()
    """Files, folders or Hub ids of texts of the same domain that need no protection, with or without labels: the
    writer learns them before the first round, behind class prompts drawn at random. They are no candidates; who
    writes has read them and may repeat what it read."""
    files_max_steps: int = Field(600, ge=1)
    """Updates on the texts of `files`, at most; no text is seen more often than `num_train_epochs` times."""
    rounds: int = Field(4, ge=1)
    """Rounds of writing, each with the same share of the pool; after each but the last the writer is tuned. With
    1 all is written by the LM as it is, or as it has learnt `files`."""
    share: float = Field(0.1, gt=0, le=1)
    """Of the candidates at hand, how many are chosen for the writer to learn; at least ten of every class, where
    there are."""
    num_train_epochs: float = Field(8.0, gt=0)
    """Times that the writer sees every one."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of AdamW, falling to zero in every round; for adapters about ten times as much is usual."""
    per_device_train_batch_size: int = Field(16, ge=1)
    """Texts in one update."""
    unigram_step: float = Field(0.7, ge=0, le=1)
    """How far each round goes towards every word's share of the real rows, which is then part of what is released
    of them: 1 adds the whole logarithm of what is missing to the word's logit, 0 releases nothing. With privacy
    they have noise, and `privacy.words_fraction` of the budget."""
    lora: LoraSettings | None = None
    """Adapters instead of all weights, for models that barely fit."""

    @property
    def follows_words(self) -> bool:
        """Whether the writer follows the words of the real rows, whose shares are released for that."""
        return self.rounds > 1 and self.unigram_step > 0


def tune_writer(
    lm: LanguageModel,
    examples: Sequence[Example],
    config: WriterConfig,
    generator: torch.Generator,
    max_steps: int | None = None,
) -> LanguageModel:
    """The LM as it writes after it has seen the examples; `lm` stays as it is.

    Next-token cross-entropy over the tokens of the texts, given prompt and what stands before, averaged over the
    tokens of a batch.

    Args:
        lm: where the weights start.
        examples: at least one, with at least one token of prompt and of text each.
        config: how.
        generator: random generator on the CPU: the order of examples.
        max_steps: updates, at most.

    Raises:
        NonFiniteError: if the loss stops being finite.
        OutOfMemoryError: if a single text does not fit into memory.
    """
    assert examples, "nothing to learn"
    size, limit = config.per_device_train_batch_size, BatchLimit(config.per_device_train_batch_size)
    steps, order = max(1, round(config.num_train_epochs * len(examples) / size)), list[int]()
    steps = min(steps, max_steps or steps)
    seed = int(torch.randint(2**31, (), generator=generator))
    model = TrainableModel(lm, config.lora, autocast=lm.dtype == torch.bfloat16, seed=seed)
    weights, settings = list(model.parameters().values()), OptimizerConfig(learning_rate=config.learning_rate)
    optimizer = make_optimizer(weights, settings)
    schedule = make_schedule(optimizer, settings, steps)
    for _ in range(steps):
        while len(order) < size:
            order += torch.randperm(len(examples), generator=generator).tolist()
        batch, order = [examples[i] for i in order[:size]], order[size:]
        _differentiate(model, batch, limit, config)
        torch.nn.utils.clip_grad_norm_(weights, _MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.language_model()


def _differentiate(
    model: TrainableModel, batch: Sequence[Example], limit: BatchLimit, config: WriterConfig
) -> None:
    """Leaves the gradient of a batch's mean loss in the weights, as many texts at a time as fit."""
    tokens = sum(len(text) for _, text in batch)
    while True:
        try:
            for at in range(0, len(batch), limit.size):
                loss = next_token_loss(model, batch[at : at + limit.size]) / tokens
                if not bool(loss.isfinite()):
                    raise NonFiniteError(
                        f"the loss of the writer is {float(loss.detach())}; lower writer.learning_rate (it is "
                        f"{config.learning_rate:g}), or set writer.rounds to 1 and leave writer.files out"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
            return
        except (RuntimeError, MemoryError) as error:
            model.model.zero_grad()  # what a pass that broke off has left
            limit.lower(error, "tuning the writer", len(batch))


def next_token_loss(model: TrainableModel, examples: Sequence[Example]) -> Tensor:
    """Cross-entropy of all tokens of the texts, summed (nats)."""
    rows = [[*prompt, *text] for prompt, text in examples]
    length, width = max(map(len, rows)), max(len(text) for _, text in examples)
    ids_NS = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=model.device)
    # The tokens of every text, wherever it starts; behind its end, any that is there.
    at_NT = torch.tensor([[min(len(prompt) + t, length - 1) for t in range(width)] for prompt, _ in examples])
    inside_NT = torch.tensor([[t < len(text) for t in range(width)] for _, text in examples], device=model.device)
    at_NT = at_NT.to(model.device)
    logits_NTV, _ = model.head(model.read(ids_NS, at_NT - 1))  # each is predicted one place before
    targets_NT = ids_NS.gather(1, at_NT).masked_fill(~inside_NT, _UNCOUNTED)
    loss: Tensor = torch.nn.functional.cross_entropy(
        logits_NTV.flatten(0, 1).float(), targets_NT.flatten(), ignore_index=_UNCOUNTED, reduction="sum"
    )
    return loss
