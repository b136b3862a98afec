"""Addax: an optimiser that holds no gradient as a whole.

Addax (Li et al., "Addax: Utilizing Zeroth-Order Gradients to Improve Memory Efficiency and Performance of SGD for
Fine-Tuning Language Models", ICLR 2025) takes two estimates of the gradient at the same weights, each from the
rows for which it is cheap, and moves along both:

    theta <- theta - lr * (alpha * g0 * z + (1 - alpha) * g1)

    g1 is the gradient of the short rows' loss. Backpropagation applies it weight by weight and frees it at once.
    g0 = (L(theta + eps z) - L(theta - eps z)) / (2 eps), z ~ N(0, I), is that of the long rows' loss L along one
    direction, from two forward passes (SPSA; as in MeZO, Malladi et al., NeurIPS 2023). z is drawn anew from a
    seed wherever it is needed.

The weights come back from theta +- eps z bit for bit. Adding and subtracting do not achieve that in floating
point, so what they miss is kept while the weights are moved (`_Correction`): a fifth of a byte a weight or so.

Shape suffixes: N weights of one piece of one parameter, B bytes, M weights that a correction changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle

from gradmm.errors import ConfigError, NonFiniteError
from gradmm.seeds import derive_seed

Loss = Callable[[], Tensor]
_PIECE = {"cpu": 2**18}  # weights that are worked on at once: small beside a model, long beside a kernel's launch
_OTHER_PIECE = 2**22
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_WIDE = -128  # stands in a correction for a number that 8 bits do not hold


def split_by_length(lengths: Sequence[int], longest: int) -> tuple[list[int], list[int]]:
    """Which rows are short enough for backpropagation, and which are not.

    Args:
        lengths: tokens of every row.
        longest: tokens that a short row has at most (the paper's L_T).

    Returns:
        Indices of the short rows and of the long ones, each in their order.
    """
    short = [i for i, length in enumerate(lengths) if length <= longest]
    return short, [i for i, length in enumerate(lengths) if length > longest]


class Addax(Optimizer):
    """Zeroth-order steps for long rows, first-order steps for short ones, and no gradient ever held as a whole.

    A step of short rows alone is SGD's, whatever alpha; one of long rows alone is MeZO's. What the steps need to
    go on, the count that seeds z among it, is in `param_groups` and so in `state_dict`.

    Args:
        params: parameters, or groups of them; contiguous, each given once, of 16, 32 or 64 bits.
        lr: learning rate; schedulers may change it.
        alpha: weight of the zeroth-order estimate where there are both kinds of rows.
        perturbation: [eps] how far the weights are moved to and fro.
        weight_decay: decoupled: every step also takes lr * weight_decay of each weight that it moves.
        seed: of z.

    Raises:
        ConfigError: if a setting or a parameter cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        alpha: float = 1e-3,
        perturbation: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        own = {"lr": lr, "alpha": alpha, "perturbation": perturbation, "weight_decay": weight_decay, "seed": seed}
        super().__init__(params, own | {"steps": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, with settings of their own where they are given."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ConfigError:
            self.param_groups.pop()
            raise

    def step(  # type: ignore[override]
        self, short: Loss | None = None, long: Loss | None = None, counts: tuple[int, int] = (1, 1)
    ) -> float:
        """Moves the weights once. The optimiser runs backpropagation itself, and leaves no gradients.

        Whatever a closure raises, the weights are then as they were. Only where backpropagation itself fails, some
        have moved and some have not.

        Args:
            short: computes the mean loss of the short rows, with derivatives (checkpointing has to be the
                non-reentrant kind); None if there are none.
            long: computes the mean loss of the long rows, without derivatives; it is called twice, with the same
                state of torch's random generators, so that dropout is the same. In float32 for the last step, or
                rounding hides the difference. None if there are none.
            counts: rows of either kind, for the mean that is returned; they do not weigh in the step.

        Returns:
            The mean loss at the weights before the step.

        Raises:
            ConfigError: if there is no closure, or the short rows' loss depends on no weight.
            NonFiniteError: if a loss is not finite; the weights are as they were, and the step does not count.
        """
        if short is None and long is None:
            raise ConfigError("a step of Addax has neither short rows nor long ones; give at least one closure")
        self.zero_grad()
        weights = list(self._weights())
        losses, difference = [], None
        if long is not None:
            plus, minus = self._probe(long, weights)
            losses, difference = [(counts[1], (plus + minus) / 2)], plus - minus
        found = _Found(difference, short is not None)
        if short is not None:
            losses.append((counts[0], self._descend(short, weights, found)))
        else:
            found.move(weights)
        for group in self.param_groups:
            group["steps"] += 1
        return sum(count * loss for count, loss in losses) / sum(count for count, _ in losses)

    def _weights(self) -> Iterator[_Weight]:
        for number, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.requires_grad:
                    yield _Weight(parameter, group, (number, place))

    def _probe(self, long: Loss, weights: Sequence[_Weight]) -> tuple[float, float]:
        """The long rows' loss on both sides of the weights."""
        devices = {weight.parameter.device for weight in weights if weight.parameter.device.type == "cuda"}
        with torch.no_grad():
            with torch.random.fork_rng(devices=sorted(devices, key=str)), _moved(weights, 1):
                plus = self._evaluate(long, "long rows' loss at theta + eps z")
            with _moved(weights, -1):
                minus = self._evaluate(long, "long rows' loss at theta - eps z")
        return float(plus), float(minus)

    def _descend(self, short: Loss, weights: Sequence[_Weight], found: _Found) -> float:
        """Backpropagates the short rows' loss and moves every weight as soon as its gradient is complete."""
        with torch.enable_grad():
            loss = self._evaluate(short, "short rows' loss")
        if not (weights and loss.requires_grad):
            raise ConfigError(
                "the short rows' loss depends on no weight that can be moved; let some of Addax's parameters "
                "require gradients, and compute the loss without torch.no_grad"
            )
        value, left = float(loss.detach()), {id(weight.parameter): weight for weight in weights}

        def move(parameter: Tensor) -> None:
            found.move([left.pop(id(parameter))])

        hooks = [_after_gradient(weight.parameter, move) for weight in weights]
        try:
            # Without `inputs`, weights that are not moved here but require gradients would gather them.
            torch.autograd.backward(loss, inputs=[weight.parameter for weight in weights])
        finally:
            for hook in hooks:
                hook.remove()
            self.zero_grad()
        if found.difference is not None:  # weights that the short rows do not reach
            found.move(left.values())
        return value

    def _evaluate(self, closure: Loss, what: str) -> Tensor:
        torch.clear_autocast_cache()  # it may hold copies of the weights as they were before
        loss = closure()
        value, group = float(loss.detach()), self.param_groups[0]
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the {what} is {value} in step {group['steps'] + 1}; the weights are as they were before "
                f"it; lower lr (it is {float(group['lr']):g}) or perturbation (it is "
                f"{group['perturbation']:g}), or compute in float32"
            )
        return loss


@dataclass(frozen=True)
class _Weight:
    """A parameter that is moved."""

    parameter: Tensor
    group: dict[str, Any]
    place: tuple[int, int]
    """Number of its group, and where it stands there."""

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameter in pieces (N), each with its z (N): float32, or float64 where the weights are."""
        weight_N = self.parameter.detach().view(-1)
        dtype = torch.promote_types(weight_N.dtype, torch.float32)
        seed = derive_seed(self.group["seed"], "addax", self.group["steps"], *self.place)
        generator = torch.Generator(weight_N.device).manual_seed(seed)
        for piece_N in torch.split(weight_N, _PIECE.get(weight_N.device.type, _OTHER_PIECE)):
            # float32 in any case, so that weights of every precision are moved alike
            yield piece_N, torch.randn(len(piece_N), generator=generator, device=weight_N.device).to(dtype)

    def move(self, along_z: float, along_gradient: float) -> None:
        """Takes lr * (along_z * z + along_gradient * gradient), frees the gradient, and decays the weights."""
        lr, gradient, at = float(self.group["lr"]), self.parameter.grad, 0
        self.parameter.grad = None
        if self.group["weight_decay"]:
            self.parameter.mul_(1 - lr * self.group["weight_decay"])
        if along_z == 0:
            if gradient is not None:
                self.parameter.add_(gradient, alpha=-lr * along_gradient)  # as torch's SGD, to the last bit
            return
        flat = None if gradient is None else gradient.reshape(-1)
        for piece_N, z_N in self.pieces():
            step_N = z_N.mul_(along_z)
            if flat is not None:
                step_N.add_(flat[at : at + len(piece_N)], alpha=along_gradient)
            piece_N.add_(step_N, alpha=-lr)  # both at once: of two small steps, half precision may round both away
            at += len(piece_N)


@dataclass(frozen=True)
class _Found:
    """What is known of the gradient when weights are moved."""

    difference: float | None
    """L(theta + eps z) - L(theta - eps z) of the long rows; None if there are none."""
    has_short: bool

    @torch.no_grad()
    def move(self, weights: Iterable[_Weight]) -> None:
        """Moves these weights along z, and along their gradients where they have any."""
        for weight in weights:
            share = float(self.difference is not None)
            if self.difference is not None and self.has_short:
                share = weight.group["alpha"]
            g0 = 0.0 if self.difference is None else self.difference / (2 * weight.group["perturbation"])
            weight.move(share * g0, 1 - share)


def _after_gradient(parameter: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return handle


@contextmanager
def _moved(weights: Sequence[_Weight], sign: int) -> Iterator[None]:
    """Weights at theta + sign * eps z for as long as the context lasts, and after it bit for bit as before."""
    corrections: list[_Correction] = []
    try:
        for piece_N, shift_N in _shifts(weights, sign):
            there_N = _sum(piece_N, shift_N)
            corrections.append(_Correction.between(_sum(there_N, -shift_N), piece_N))
            piece_N.copy_(there_N)
        yield
    finally:  # also where memory ran out on the way: as many pieces are moved as there are corrections
        for correction, (piece_N, shift_N) in zip(corrections, _shifts(weights, sign), strict=False):
            piece_N.copy_(correction.apply(_sum(piece_N, -shift_N)))


def _shifts(weights: Iterable[_Weight], sign: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every piece (N) with sign * eps z (N)."""
    for weight in weights:
        for piece_N, z_N in weight.pieces():
            yield piece_N, z_N.mul_(sign * weight.group["perturbation"])


def _sum(weight_N: Tensor, shift_N: Tensor) -> Tensor:
    """Rounded once, and by one rounding rule wherever it is computed, unlike `add` with a factor."""
    return (weight_N + shift_N).to(weight_N.dtype)


@dataclass(frozen=True)
class _Correction:
    """What makes one piece another one that is nearly the same: the differences of their bit patterns.

    Read as whole numbers, neighbouring floating-point numbers differ by 1. Most differences here are 0 and take
    one bit; nearly all others fit into 8.
    """

    changed_B: Tensor
    """Which differences are not 0, a bit each."""
    small_M: Tensor
    """These, int8; `_WIDE` where that is too short."""
    wide: Tensor
    """Those for which it is too short, in their order."""

    @classmethod
    def between(cls, old_N: Tensor, new_N: Tensor) -> _Correction:
        """What has to be added to the old pattern; the sum wraps around where the difference did."""
        bits = _BITS[new_N.element_size()]
        difference_N = new_N.view(bits) - old_N.view(bits)
        changed_N = difference_N != 0
        found_M = difference_N[changed_N]
        fits_M = (found_M > _WIDE) & (found_M < -_WIDE)
        small_M = torch.where(fits_M, found_M, _WIDE).to(torch.int8)
        return cls(_packed(changed_N), small_M, found_M[~fits_M])

    def apply(self, old_N: Tensor) -> Tensor:
        """The other piece."""
        bits = _BITS[old_N.element_size()]
        found_M = self.small_M.to(bits)
        found_M[self.small_M == _WIDE] = self.wide
        difference_N = torch.zeros_like(old_N, dtype=bits)
        difference_N[_unpacked(self.changed_B, len(old_N))] = found_M
        return (old_N.view(bits) + difference_N).view(old_N.dtype)


def _packed(flags_N: Tensor) -> Tensor:
    """Eight flags a byte."""
    padded_B8 = torch.nn.functional.pad(flags_N, (0, -len(flags_N) % 8)).view(-1, 8)
    return (padded_B8 * _powers(flags_N.device)).sum(1, dtype=torch.uint8)


def _unpacked(packed_B: Tensor, count: int) -> Tensor:
    return (packed_B.unsqueeze(1) & _powers(packed_B.device)).bool().flatten()[:count]


def _powers(device: torch.device) -> Tensor:
    return 1 << torch.arange(8, dtype=torch.uint8, device=device)


def _check_group(group: dict[str, Any]) -> None:
    """Refuses settings and parameters that cannot be used."""
    for name, fits, wanted in (
        ("lr", group["lr"] >= 0, "a number of at least 0"),
        ("alpha", 0 <= group["alpha"] <= 1, "a number from 0 to 1"),
        ("perturbation", group["perturbation"] > 0, "a number above 0, such as 1e-3"),
        ("weight_decay", group["weight_decay"] >= 0, "a number of at least 0"),
    ):
        if not fits or not math.isfinite(group[name]):
            raise ConfigError(f"{name} of Addax is {group[name]}; give {wanted}")
    if len({id(parameter) for parameter in group["params"]}) < len(group["params"]):
        raise ConfigError(
            "Addax is given the same parameter twice; give every one once, as model.parameters() does"
        )
    for parameter in group["params"]:
        what = f"Addax cannot move a parameter of shape {tuple(parameter.shape)}"
        if not parameter.is_floating_point() or parameter.element_size() not in _BITS:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(f"{what} in {dtype}; convert it to float32, bfloat16 or float16")
        if not parameter.is_contiguous():
            raise ConfigError(f"{what} whose numbers are not contiguous in memory; give it its .contiguous() data")
