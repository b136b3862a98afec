"""Decoding on a GPU without launching its kernels one by one.

A step of one token is hundreds of small kernels, and starting them takes a processor longer than running them
takes the GPU. So the steps that follow some prompts are recorded as CUDA graphs, the first time that so many rows
take them, and replayed from then on. Every step has a graph, which reads the cache as the one before it left it.

Numbers of rows are rounded up, so that few recordings serve batches of every size; rows that are added repeat the
first one. Recordings are used where they give what the steps themselves give, which is tried once; elsewhere (a
body that asks the GPU for a number on its way cannot be recorded) the steps are taken as they are.

Shape suffixes: N rows, M rows of a recording (M >= N), D hidden size.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradmm.continuation import Continuation
from gradmm.memory import is_out_of_memory

log = logging.getLogger("gradmm")

_KEPT = 4  # recordings, each of which holds a cache
_STEP = 32  # rows are rounded up to a multiple of it, and to a power of two below it
_TOLERANCE = 1e-3  # relative, of hidden states: the same kernels ran
_TRIED = 3  # steps

Out = TypeVar("Out")


@dataclass
class _Recording:
    """The steps after some prompts, for M rows."""

    read: Continuation
    chosen_M: Tensor
    ids_M: Tensor
    pool: Any
    stream: torch.cuda.Stream
    """One for all steps: what a step frees, only a later one of the same stream can take."""
    start: torch.cuda.CUDAGraph | None = None
    going: Continuation | None = None
    steps: list[tuple[torch.cuda.CUDAGraph, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, read: Continuation, rows: int, device: torch.device) -> _Recording:
        chosen_M, ids_M = (torch.zeros(rows, dtype=torch.long, device=device) for _ in range(2))
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return cls(read, chosen_M, ids_M, torch.cuda.graph_pool_handle(), stream)

    def begin(self) -> None:
        """Copies the prompts' cache for the rows that `chosen_M` names."""
        if self.start is None:
            self.start, self.going = self._record(lambda: self.read.chosen(self.chosen_M))
        self.start.replay()

    def step(self, at: int) -> Tensor:
        """Hidden states (M, D) after the tokens that are in `ids_M`."""
        going = self.going
        assert going is not None, "begun"
        if at == len(self.steps):
            self.steps.append(self._record(lambda: going.step(self.ids_M)))
        graph, hidden_MD = self.steps[at]
        graph.replay()
        return hidden_MD

    def _record(self, work: Callable[[], Out]) -> tuple[torch.cuda.CUDAGraph, Out]:
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self.ids_M.device.index]
        drawn_from = generator.clone_state()
        self.stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self.stream):
                graph.capture_begin(pool=self.pool)
                try:
                    out = work()
                finally:
                    graph.capture_end()
        except Exception:
            generator.graphsafe_set_state(drawn_from)  # its own waits for the end of a recording that broke off
            raise
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph, out


class Recordings:
    """What has been recorded of one model, the latest few."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], _Recording] = OrderedDict()
        self._is_tried, self._is_refused = False, False

    def begin(self, read: Continuation, chosen_N: Tensor) -> Continuation | Replayed:
        """Goes on after some of the sequences that were read, as `Continuation.chosen` does."""
        if chosen_N.device.type != "cuda" or read.argument is None:
            return read.chosen(chosen_N)
        if not self._is_tried:
            self._try(read, chosen_N)
            self._is_tried = True
        return read.chosen(chosen_N) if self._is_refused else Replayed(self, read, chosen_N)

    def take(self, read: Continuation, rows: int, device: torch.device) -> _Recording:
        """The recording for so many rows, which becomes the latest."""
        key = (id(read), rows)
        if key not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = _Recording.of(read, rows, device)
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Lets the memory of all go."""
        self._kept.clear()

    def refuse(self, reason: str) -> None:
        """From here on nothing is recorded."""
        self.clear()
        self._is_refused = True
        log.info("decoding without CUDA graphs (%s), which takes longer", reason)

    def _try(self, read: Continuation, chosen_N: Tensor) -> None:
        """Some steps twice, for the first and the last row: recorded, and from the recording."""
        ids = [torch.full_like(chosen_N[:1], token) for token in range(2, 2 + _TRIED)]
        for row_1 in (chosen_N[:1], chosen_N[-1:]):
            found_TD, expected_TD = (
                _steps(going, ids) for going in (Replayed(self, read, row_1), read.chosen(row_1))
            )
            error = float((found_TD - expected_TD).norm() / expected_TD.norm())
            if error > _TOLERANCE:  # numbers that are not finite are another's to tell
                self.refuse(f"they give hidden states that differ by {error:.0%} from those of plain steps")
            if self._is_refused:
                return


class Replayed:
    """A continuation whose steps are replayed."""

    def __init__(self, recordings: Recordings, read: Continuation, chosen_N: Tensor) -> None:
        self._recordings, self._read, self._chosen_N = recordings, read, chosen_N
        self._past: list[Tensor] = []
        self._plain: Continuation | None = None

    def step(self, ids_N: Tensor) -> Tensor:
        """As `Continuation.step`; what is returned is overwritten by the next decode."""
        if self._plain is None:
            try:
                return self._replay(ids_N)
            except Exception as err:  # the code of any architecture runs here
                if is_out_of_memory(err):
                    self._recordings.clear()
                    raise
                self._recordings.refuse(f"{type(err).__name__}: {err}")
                self._plain = self._read.chosen(self._chosen_N)
                for past_N in self._past:
                    self._plain.step(past_N)
        return self._plain.step(ids_N)

    def _replay(self, ids_N: Tensor) -> Tensor:
        count = len(ids_N)
        recording = self._recordings.take(self._read, rounded(count), ids_N.device)
        if not self._past:
            recording.chosen_M.copy_(self._chosen_N[:1].expand_as(recording.chosen_M))
            recording.chosen_M[:count] = self._chosen_N
            recording.begin()
        recording.ids_M.copy_(ids_N[:1].expand_as(recording.ids_M))
        recording.ids_M[:count] = ids_N
        hidden_MD = recording.step(len(self._past))
        self._past.append(ids_N.clone())
        return hidden_MD[:count]


def _steps(going: Continuation | Replayed, ids: Sequence[Tensor]) -> Tensor:
    """Hidden states after each of some tokens."""
    return torch.stack([going.step(ids_1)[0].float() for ids_1 in ids])


def rounded(rows: int) -> int:
    """Rows of the recording that serves so many."""
    return -(-rows // _STEP) * _STEP if rows > _STEP // 2 else 1 << (rows - 1).bit_length()
