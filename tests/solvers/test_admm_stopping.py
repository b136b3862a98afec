"""Where ADMM ends: convergence, a stall, the most iterations, numbers that are not finite."""

from dataclasses import replace

import pytest
import torch

from admm_problems import Box, Scripted, config, solve
from gradmm.errors import NonFiniteError
from gradmm.solvers.admm import Admm, Stop


def test_converged(rng):
    problem = Box(torch.randn(3, 2, 2, generator=rng))
    state, stop = solve(problem, config(relative_tolerance=1e-3), torch.zeros(3, 2, 2))
    count = int(state.outer)
    assert 1 < count < 200
    assert stop == Stop("converged", f"text and vectors agree after {count} outer iterations")
    torch.testing.assert_close(state.z, problem.optimum, atol=5e-3, rtol=0)


@pytest.mark.parametrize("order", ["x_first", "z_first"])
def test_a_start_in_the_set_that_has_hardly_moved_has_not_converged(order):
    # The optimum is 0.4; one Adam step of 1e-4 from 0.1 is nowhere near, though x and z almost agree.
    problem = Box(torch.full((1, 1, 2), 0.4))
    settings = config(order=order, n_inner=1, learning_rate=1e-4, relative_tolerance=1e-2)
    solver = Admm(problem, settings)
    assert solver.stop(solver.step(solver.init(torch.full((1, 1, 2), 0.1)))) is None


def test_convergence_is_boyds_criterion_for_every_block(rng):
    solver = Admm(
        Box(torch.randn(2, 2, 3, generator=rng)), config(absolute_tolerance=0.01, relative_tolerance=0.1)
    )
    state = solver.step(solver.init(torch.randn(2, 2, 3, generator=rng)))
    state = replace(state, z=state.x * torch.tensor([0.5, 2.0]).view(2, 1, 1))  # each is once the longer one
    norm = {name: getattr(state, name).flatten(1).norm(dim=1) for name in ("x", "z", "dual")}
    primal_K = 6**0.5 * 0.01 + 0.1 * torch.maximum(norm["x"], norm["z"])
    dual_K = 6**0.5 * 0.01 + 0.1 * norm["dual"]
    fine, lax = torch.tensor([0.999, 0.999]), torch.tensor([0.999, 1.001])
    within = replace(state, primal_K=primal_K * fine, dual_residual_K=dual_K * fine)
    assert solver.stop(within).reason == "converged"
    assert solver.stop(replace(within, primal_K=primal_K * lax)) is None
    assert solver.stop(replace(within, dual_residual_K=dual_K * lax)) is None


def test_stalled_when_no_block_improves_for_as_long_as_patience():
    script = [[0.5, 0.4, 0.4, 0.4, 0.4, 0.1], [0.5, 0.5, 0.3, 0.6, 0.3, 0.1]]
    state, stop = solve(Scripted(script), config(patience=2, n_outer=5), torch.ones(2, 1, 1))
    assert int(state.outer) == 4
    assert stop == Stop("stalled", "no block's text has improved for 2 outer iterations")


@pytest.mark.parametrize("count", [0, 3])
def test_max_outer(count, rng):
    state, stop = solve(Box(torch.randn(1, 2, 2, generator=rng)), config(n_outer=count), torch.zeros(1, 2, 2))
    assert int(state.outer) == count
    sentence = f"all {count} outer iterations are done; more may improve the texts further"
    assert stop == Stop("max_outer", sentence)


REMEDY = "lower admm.learning_rate, or set model.dtype to float32 (or bfloat16, if it is float16)"


@pytest.mark.parametrize("spoilt", ["objective", "gradient"])
def test_an_x_update_that_is_not_finite_is_an_error_with_step_and_remedy(spoilt):
    class Explodes(Box):
        left = None  # objectives until the one that is spoilt

        def objective(self, x):
            value_K = super().objective(x)
            if self.left is not None:
                self.left -= 1
            if self.left != 0:
                return value_K
            if spoilt == "objective":
                return value_K * torch.tensor([1.0, torch.nan])
            nought_K = (x - x.detach()).flatten(1).sum(1).sqrt()  # of infinite slope
            return value_K + nought_K * torch.tensor([0.0, 1.0])

    problem = Explodes(torch.full((2, 1, 1), 5.0))
    solver = Admm(problem, config(n_inner=3))
    state = solver.step(solver.init(torch.ones(2, 1, 1)))
    problem.left = 2
    with pytest.raises(NonFiniteError) as caught:
        solver.step(state)
    # Nought times infinity is no number either, so the slope spoils both blocks.
    blocks = "block 1 of 2" if spoilt == "objective" else "block 0 of 2"
    told = f"objective or gradient stopped being finite in inner step 2 of outer iteration 2 ({blocks}; "
    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith(f"); {REMEDY}")


def test_texts_that_are_worth_no_number_are_an_error():
    class Spoilt(Box):
        def score(self, codes):
            return torch.tensor([1.0, torch.nan])

    with pytest.raises(NonFiniteError) as caught:
        Admm(Spoilt(torch.zeros(2, 1, 1)), config()).init(torch.zeros(2, 1, 1))
    told = "what the texts are worth is not finite after outer iteration 0: [1.0, nan]; "
    assert str(caught.value) == told + REMEDY
