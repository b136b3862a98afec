"""ADMM over blocks: min f(x) subject to x in a set that can only be projected on (algorithm 1 of the paper).

    x <- argmin  f(x) + (rho/2) |x - z + dual/rho|^2      n_inner Adam steps, gradients clipped
    z <- project(x + dual/rho)
    dual <- dual + dual_step * rho * (x - z)

The solver knows no language model, tokenizer or data set: it sees a `Problem`. Its state is its checkpoint:
given the same state it takes the same step, and nothing in it is random.

Shape suffix: K blocks, each a problem of its own with a penalty rho, best iterate and residuals of its own;
"..." are the axes inside a block, of which the first is its texts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.errors import NonFiniteError

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_REMEDY = "lower admm.learning_rate, or set model.dtype to float32 (or bfloat16, if it is float16)"


class Problem(Protocol):
    """What ADMM needs to know."""

    def objective(self, x: Tensor) -> Tensor:
        """F of every block (K,), differentiable."""

    def project(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest points of the set (K, ...) and codes that name them (K, ...), which `score` understands."""

    def score(self, codes: Tensor) -> Tensor:
        """What the points that the codes name are worth (K,); lower is better."""


class AdmmConfig(BaseModel):
    """ADMM's settings; the paper's symbol in brackets."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n_outer: int = Field(24, ge=0)
    """Outer iterations [T]."""
    n_inner: int = Field(8, ge=1)
    """Adam steps of one x-update [M]."""
    learning_rate: float = Field(0.03, gt=0)
    """Adam's step size [eta]."""
    rho: float = Field(0.01, gt=0)
    """Penalty [rho]; see `rho_unit`."""
    rho_unit: Literal["absolute", "gradient"] = "gradient"
    """`absolute`: rho as it stands. `gradient`: rho times |grad f| / |x| at the start, per block."""
    rho_schedule: Literal["fixed", "residual_balanced"] = "fixed"
    """`residual_balanced`: rho doubles or halves when one residual is ten times the other (Boyd et al. 2011)."""
    dual_step: float = Field(1.0, ge=0, le=1.618)
    """Step of the dual update; 0 leaves the dual at zero (half-quadratic splitting)."""
    order: Literal["x_first", "z_first"] = "x_first"
    """Which variable an outer iteration updates first; the official code projects first."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the x-update's gradient to this L2 norm."""
    clip: Literal["text", "block"] = "text"
    """Whether a text's gradient is clipped on its own or the whole block's together (the official code)."""
    absolute_tolerance: float = Field(0.0, ge=0)
    """Stopping (Boyd et al. 2011, 3.3.1): per-coordinate tolerance of both residuals."""
    relative_tolerance: float = Field(1e-3, ge=0)
    """Stopping: tolerance relative to |x|, |z| and |dual|."""
    patience: int | None = Field(None, ge=1)
    """Stop when no block's best score has improved for this many outer iterations."""


@dataclass(frozen=True)
class Stop:
    """Why the solver stopped, and what to do about it."""

    reason: Literal["converged", "stalled", "max_outer"]
    sentence: str


@dataclass(frozen=True)
class AdmmState:
    """Everything between two outer iterations."""

    x: Tensor
    z: Tensor
    dual: Tensor
    moment1: Tensor
    moment2: Tensor
    rho_K: Tensor
    objective_K: Tensor
    """f(x) at the last inner step."""
    primal_K: Tensor
    """|x - z|"""
    dual_residual_K: Tensor
    """rho |z - z_previous|; with `z_first`, rho |x - x_previous|"""
    codes: Tensor
    score_K: Tensor
    """What the codes are worth."""
    best_codes: Tensor
    best_score_K: Tensor
    improved_at_K: Tensor
    """Outer iteration at which the best score was reached."""
    outer: Tensor
    """Outer iterations done."""
    inner: Tensor
    """Adam steps done."""

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint; `AdmmState(**tensors)` reads it back."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}


class Admm:
    """The solver as init / step / stop.

    Args:
        problem: what is solved.
        config: settings.
    """

    def __init__(self, problem: Problem, config: AdmmConfig) -> None:
        self.problem = problem
        self.config = config

    def init(self, x: Tensor, codes: Tensor | None = None) -> AdmmState:
        """State before the first outer iteration, which is scored as every later one.

        Args:
            x: starting point (K, ...).
            codes: its codes, if it is a point of the set; otherwise it is projected.
        """
        x = x.detach().clone()
        z, codes = self.problem.project(x) if codes is None else (x.clone(), codes.clone())
        objective_K, rho_K = self._start(x)
        score_K = self._score(codes, 0)
        return AdmmState(
            x=x,
            z=z,
            dual=torch.zeros_like(x),
            moment1=torch.zeros_like(x),
            moment2=torch.zeros_like(x),
            rho_K=rho_K,
            objective_K=objective_K,
            primal_K=_norm(x - z),
            dual_residual_K=torch.full_like(rho_K, torch.inf),
            codes=codes,
            best_codes=codes.clone(),
            score_K=score_K,
            best_score_K=score_K.clone(),
            improved_at_K=torch.zeros(len(x), dtype=torch.long, device=x.device),
            outer=torch.zeros((), dtype=torch.long),
            inner=torch.zeros((), dtype=torch.long),
        )

    def step(self, state: AdmmState) -> AdmmState:
        """One outer iteration; blocks that are done stay as they are, so that none depends on the others.

        Raises:
            NonFiniteError: if the objective stops being finite.
        """
        if self.config.order == "z_first":
            new = self._x_update(self._z_update(state))
            second = new.x - state.x
        else:
            new = self._z_update(self._x_update(state))
            second = new.z - state.z
        new = replace(
            new,
            dual=new.dual + self.config.dual_step * _like(new.rho_K, new.x) * (new.x - new.z),
            primal_K=_norm(new.x - new.z),
            dual_residual_K=new.rho_K * _norm(second),
            outer=new.outer + 1,
        )
        return _freeze(self._balance(self._keep_best(new)), state, self._done(state))

    def stop(self, state: AdmmState) -> Stop | None:
        """Whether to stop, and why; None to go on."""
        outer = int(state.outer)
        if outer and bool(self._converged(state).all()):
            return Stop("converged", f"text and vectors agree after {outer} outer iterations")
        if bool(self._done(state).all()):
            return Stop("stalled", f"no block's text has improved for {self.config.patience} outer iterations")
        if outer >= self.config.n_outer:
            return Stop("max_outer", f"all {outer} outer iterations are done; more may improve the texts further")
        return None

    def _start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        objective_K = self.problem.objective(x)
        (grad,) = torch.autograd.grad(objective_K.sum(), x)
        rho_K = torch.full_like(objective_K, self.config.rho)
        if self.config.rho_unit == "gradient":
            rho_K = rho_K * _norm(grad) / _norm(x.detach()).clamp_min(1e-12)
        return objective_K.detach(), rho_K.detach().clamp_min(1e-12)

    def _x_update(self, state: AdmmState) -> AdmmState:
        x, m, v, objective_K = state.x, state.moment1.clone(), state.moment2.clone(), state.objective_K
        rho = _like(state.rho_K, x)
        anchor = state.z - state.dual / rho
        count, bad_K = int(state.inner), torch.zeros_like(state.rho_K)
        for step in range(1, self.config.n_inner + 1):
            x = x.detach().requires_grad_()
            objective_K = self.problem.objective(x)
            (grad,) = torch.autograd.grad(objective_K.sum(), x)
            x = x.detach()
            bad_K = torch.where((bad_K == 0) & ~_is_finite(objective_K.detach(), grad), step, bad_K)
            grad = self._clip(grad + rho * (x - anchor))
            count += 1
            m.lerp_(grad, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            root = (v / (1 - BETAS[1] ** count)).sqrt_().add_(EPSILON)
            x = x - self.config.learning_rate / (1 - BETAS[0] ** count) * m / root
        objective_K = objective_K.detach()
        _check_finite(bad_K, objective_K, int(state.outer) + 1)
        return replace(state, x=x, moment1=m, moment2=v, objective_K=objective_K, inner=torch.tensor(count))

    def _clip(self, grad: Tensor) -> Tensor:
        if self.config.max_grad_norm is None:
            return grad
        axes = tuple(range(2 if self.config.clip == "text" else 1, grad.dim()))
        norm: Tensor = torch.linalg.vector_norm(grad, dim=axes, keepdim=True)
        return grad * (self.config.max_grad_norm / (norm + 1e-6)).clamp_max(1.0)

    def _z_update(self, state: AdmmState) -> AdmmState:
        z, codes = self.problem.project(state.x + state.dual / _like(state.rho_K, state.x))
        return replace(state, z=z, codes=codes)

    def _score(self, codes: Tensor, outer: int) -> Tensor:
        score_K = self.problem.score(codes)
        if not bool(torch.isfinite(score_K).all()):
            raise NonFiniteError(
                f"what the texts are worth is not finite after outer iteration {outer}: {score_K.tolist()}; "
                f"{_REMEDY}"
            )
        return score_K

    def _keep_best(self, state: AdmmState) -> AdmmState:
        score_K = self._score(state.codes, int(state.outer))
        better_K = score_K < state.best_score_K
        return replace(
            state,
            score_K=score_K,
            best_codes=torch.where(_like(better_K, state.codes), state.codes, state.best_codes),
            best_score_K=torch.where(better_K, score_K, state.best_score_K),
            improved_at_K=torch.where(better_K, state.outer.to(better_K.device), state.improved_at_K),
        )

    def _balance(self, state: AdmmState) -> AdmmState:
        if self.config.rho_schedule == "fixed":
            return state
        # Where both residuals are rounding, their ratio says nothing about rho.
        moving_K = ~self._converged(state)
        factor_K = torch.ones_like(state.rho_K)
        factor_K[moving_K & (state.primal_K > 10 * state.dual_residual_K)] = 2.0
        factor_K[moving_K & (state.dual_residual_K > 10 * state.primal_K)] = 0.5
        return replace(state, rho_K=state.rho_K * factor_K)

    def _done(self, state: AdmmState) -> Tensor:
        """Blocks that have converged or stalled (K,)."""
        if not int(state.outer):
            return torch.zeros_like(state.rho_K, dtype=torch.bool)
        done_K = self._converged(state)
        if self.config.patience is not None:
            done_K |= int(state.outer) - state.improved_at_K >= self.config.patience
        return done_K

    def _converged(self, state: AdmmState) -> Tensor:
        """Both residuals within tolerance (K,)."""
        size = state.x[0].numel() ** 0.5 * self.config.absolute_tolerance
        relative = self.config.relative_tolerance
        primal_K = size + relative * torch.maximum(_norm(state.x), _norm(state.z))
        dual_K = size + relative * _norm(state.dual)
        within_K: Tensor = (state.primal_K <= primal_K) & (state.dual_residual_K <= dual_K)
        return within_K


def _freeze(new: AdmmState, old: AdmmState, frozen_K: Tensor) -> AdmmState:
    """The new state, with the old one's frozen blocks."""
    if not bool(frozen_K.any()):
        return new
    kept = {
        name: torch.where(_like(frozen_K, value), value, getattr(new, name))
        for name, value in old.tensors().items()
        if value.dim() > 0
    }
    return replace(new, **kept)


def _norm(x: Tensor) -> Tensor:
    """L2 norm of every block (K,)."""
    norm_K: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm_K


def _like(values_K: Tensor, x: Tensor) -> Tensor:
    """(K,) shaped to broadcast against (K, ...)."""
    return values_K.view(-1, *[1] * (x.dim() - 1))


def _is_finite(objective_K: Tensor, grad: Tensor) -> Tensor:
    """Whether a block's objective and gradient are numbers (K,); asks nothing of the host."""
    return torch.isfinite(objective_K) & torch.isfinite(grad.flatten(1)).all(1)


def _check_finite(bad_K: Tensor, objective_K: Tensor, outer: int) -> None:
    """Refuses the x-update if a block has an inner step (counted from 1) that was not finite."""
    if bool((bad_K > 0).any()):
        block = int((bad_K > 0).nonzero()[0])
        raise NonFiniteError(
            f"objective or gradient stopped being finite in inner step {int(bad_K[block])} of outer iteration "
            f"{outer} (block {block} of {len(bad_K)}; the objective is now {float(objective_K[block])}); {_REMEDY}"
        )
