"""ADMM on problems with a known optimum, and no language model in sight."""

import importlib
import sys
from unittest.mock import patch

import pytest
import safetensors.torch
import torch

from admm_problems import PLAIN, Box, Scripted, config, solve
from gradmm.solvers.admm import BETAS, EPSILON, Admm, AdmmState


class Plane:
    """f(x) = |A x - b|^2 / 2 subject to C x = d."""

    def __init__(self, generator):
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        self.A, self.b, self.C, self.d = normal(6, 4), normal(3, 6), normal(2, 4), normal(3, 2)

    def objective(self, x):
        return (x.flatten(1) @ self.A.T - self.b).square().sum(1) / 2

    def project(self, v):
        flat = v.flatten(1)
        off = flat @ self.C.T - self.d
        z = (flat - torch.linalg.solve(self.C @ self.C.T, off.T).T @ self.C).view_as(v)
        return z, z.clone()

    def score(self, codes):
        return self.objective(codes)

    @property
    def optimum(self):
        """From the KKT system [[A'A, C'], [C, 0]] [x, m] = [A'b, d]."""
        top = torch.cat([self.A.T @ self.A, self.C.T], dim=1)
        bottom = torch.cat([self.C, torch.zeros(2, 2)], dim=1)
        right = torch.cat([self.b @ self.A, self.d], dim=1)
        return torch.linalg.solve(torch.cat([top, bottom]), right.T).T[:, :4].view(3, 2, 2)


def steps(problem, settings, x, count):
    solver = Admm(problem, settings)
    state = solver.init(x)
    for _ in range(count):
        state = solver.step(state)
    return state


@pytest.mark.parametrize("order", ["x_first", "z_first"])
@pytest.mark.parametrize("schedule", ["fixed", "residual_balanced"])
@pytest.mark.parametrize("kind", ["box", "plane"])
def test_finds_the_known_optimum_and_its_residuals_vanish(order, schedule, kind, rng):
    problem = Box(torch.randn(3, 2, 2, generator=rng)) if kind == "box" else Plane(rng)
    settings = config(order=order, rho_schedule=schedule, relative_tolerance=1e-4)
    state, stop = solve(problem, settings, torch.zeros(3, 2, 2))
    assert stop.reason == "converged"
    torch.testing.assert_close(state.z, problem.optimum, atol=1e-3, rtol=0)
    torch.testing.assert_close(state.x, problem.optimum, atol=1e-3, rtol=0)
    torch.testing.assert_close(problem.project(state.z)[0], state.z, atol=1e-5, rtol=0)
    assert float(state.primal_K.max()) < 1e-3
    assert float(state.dual_residual_K.max()) < 1e-3


@pytest.mark.parametrize("schedule", ["fixed", "residual_balanced"])
def test_a_solved_problem_stays_solved(schedule, rng):
    """As a block does that waits for others: residuals of rounding size must say nothing about rho."""
    problem = Box(torch.randn(3, 2, 2, generator=rng))
    state = steps(problem, config(rho_schedule=schedule, relative_tolerance=1e-4), torch.zeros(3, 2, 2), 100)
    torch.testing.assert_close(state.z, problem.optimum, atol=1e-3, rtol=0)
    assert float(state.rho_K.max()) < 100


@pytest.mark.parametrize("order", ["x_first", "z_first"])
def test_the_dual_becomes_the_multiplier(order, rng):
    problem = Box(torch.randn(3, 2, 2, generator=rng))
    state = steps(problem, config(order=order), torch.zeros(3, 2, 2), 100)
    # Stationarity of the Lagrangian f(x) + dual (x - z): grad f + dual = 0.
    torch.testing.assert_close(state.dual, problem.a_KBE - problem.optimum, atol=1e-3, rtol=0)


def test_without_a_dual_step_the_dual_stays_zero_and_the_penalty_alone_holds_x(rng):
    problem = Box(torch.randn(3, 2, 2, generator=rng))
    state = steps(problem, config(dual_step=0.0, rho=3.0), torch.zeros(3, 2, 2), 60)
    assert torch.equal(state.dual, torch.zeros_like(state.dual))
    # argmin |x - a|^2/2 + 3 |x - z|^2/2, z = clip(x): x = (a + 3 z) / 4 outside the box, a inside.
    torch.testing.assert_close(state.x, (problem.a_KBE + 3 * problem.optimum) / 4, atol=1e-3, rtol=0)


def test_the_dual_update_is_the_formula(rng):
    problem = Box(torch.randn(2, 2, 3, generator=rng))
    solver = Admm(problem, config(dual_step=1.5, rho=0.7, n_inner=3))
    before = solver.step(solver.init(torch.zeros(2, 2, 3)))
    after = solver.step(before)
    torch.testing.assert_close(after.dual, before.dual + 1.5 * 0.7 * (after.x - after.z))
    torch.testing.assert_close(after.primal_K, (after.x - after.z).flatten(1).norm(dim=1))
    torch.testing.assert_close(after.dual_residual_K, 0.7 * (after.z - before.z).flatten(1).norm(dim=1))
    torch.testing.assert_close(after.z, problem.project(after.x + before.dual / 0.7)[0])


def test_z_first_projects_before_it_moves_x(rng):
    problem = Box(torch.randn(2, 2, 3, generator=rng))
    start = 2 * torch.randn(2, 2, 3, generator=rng)
    solver = Admm(problem, config(order="z_first", n_inner=3))
    before = solver.step(solver.init(start))
    assert torch.equal(before.z, problem.project(start)[0])
    assert torch.equal(solver.step(before).z, problem.project(before.x + before.dual)[0])


@pytest.mark.parametrize(("z", "factor"), [("far", 2.0), ("follows", 0.5), ("near", 1.0)])
def test_rho_doubles_or_halves_when_one_residual_is_ten_times_the_other(z, factor):
    class Sets(Box):
        def project(self, v):
            point = {"far": torch.full_like(v, 9.0), "follows": v.clone(), "near": 0.5 * v}[z]
            return point, point

    solver = Admm(Sets(torch.ones(2, 1, 2)), config(rho_schedule="residual_balanced", rho=0.8, n_inner=5))
    before = solver.step(solver.init(torch.full((2, 1, 2), 0.1)))
    after = solver.step(before)
    ratio_K = after.primal_K / after.dual_residual_K
    assert {"far": ratio_K > 10, "follows": ratio_K < 0.1, "near": (ratio_K > 0.1) & (ratio_K < 10)}[z].all()
    torch.testing.assert_close(after.rho_K, factor * before.rho_K)


def test_the_x_update_is_torch_adam_across_outer_iterations(rng):
    a, still = torch.randn(2, 2, 3, generator=rng), torch.randn(2, 2, 3, generator=rng)

    class Still(Box):
        def project(self, v):
            return still, still

    settings = config(dual_step=0.0, rho=0.3, n_inner=7, learning_rate=0.05)
    state = steps(Still(a), settings, torch.zeros(2, 2, 3), 3)
    x = torch.zeros(2, 2, 3, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.05, betas=BETAS, eps=EPSILON)
    for _ in range(21):
        adam.zero_grad()
        ((x - a).square().sum() / 2 + 0.15 * (x - still).square().sum()).backward()
        adam.step()
    torch.testing.assert_close(state.x, x.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(state.moment2, adam.state[x]["exp_avg_sq"])
    assert int(state.inner) == 21


@pytest.mark.parametrize("clip", ["text", "block"])
def test_the_gradient_is_clipped_per_text_or_per_block(clip):
    # f's gradient at 0 is -a, and z = 0: block 0 has texts of norm 5 and 0.5, block 1 of 0.3 and 0.4.
    a = torch.tensor([[[3.0, 4.0], [0.3, 0.4]], [[0.3, 0.0], [0.0, 0.4]]])
    state = steps(Box(a), config(clip=clip, max_grad_norm=1.0, n_inner=1), torch.zeros(2, 2, 2), 1)
    kept = [[0.3, 0.0], [0.0, 0.4]]
    per_text = [[0.6, 0.8], [0.3, 0.4]]
    per_block = [[3 / 25.25**0.5, 4 / 25.25**0.5], [0.3 / 25.25**0.5, 0.4 / 25.25**0.5]]
    expected = -torch.tensor([per_text if clip == "text" else per_block, kept])
    torch.testing.assert_close(state.moment1 / (1 - BETAS[0]), expected, atol=1e-5, rtol=1e-5)


def test_the_best_iterate_is_the_lowest_score_ever_seen_by_each_block():
    script = [[0.5, 0.4, 0.9, 0.2, 0.3], [0.1, 0.7, 0.6, 0.5, 0.4], [0.9, 0.9, 0.3, 0.3, 0.8]]
    solver = Admm(Scripted(script), config(n_outer=4))
    state = solver.init(torch.ones(3, 2, 1))
    for i in range(5):
        seen = torch.tensor(script)[:, : i + 1]
        assert torch.equal(state.score_K, seen[:, -1])
        assert torch.equal(state.best_score_K, seen.min(1).values)
        assert torch.equal(state.best_codes[:, 1, 0], seen.argmin(1))
        assert torch.equal(state.improved_at_K, seen.argmin(1))
        state = solver.step(state) if i < 4 else state


def test_a_start_with_codes_is_a_point_of_the_set_and_competes():
    problem = Scripted([[0.1, 0.5], [0.5, 0.1]])
    codes = torch.zeros(2, 2, 3, dtype=torch.long)
    x = torch.rand(2, 2, 3)
    state = Admm(problem, PLAIN).init(x, codes)
    assert problem.calls == 0, "a point of the set needs no projection"
    assert torch.equal(state.z, x)
    assert torch.equal(state.primal_K, torch.zeros(2))
    assert torch.equal(state.best_codes, codes)
    assert torch.equal(state.best_score_K, torch.tensor([0.1, 0.5]))


@pytest.mark.parametrize("order", ["x_first", "z_first"])
def test_blocks_solved_together_are_those_solved_alone(order, rng):
    a, x = torch.randn(4, 2, 3, generator=rng), torch.randn(4, 2, 3, generator=rng)
    settings = config(
        order=order, rho_schedule="residual_balanced", rho_unit="gradient", rho=0.4, max_grad_norm=0.5
    )
    together = steps(Box(a), settings, x, 5).tensors()
    for k in range(4):
        alone = steps(Box(a[k : k + 1]), settings, x[k : k + 1], 5).tensors()
        for name in together.keys() - {"outer", "inner"}:
            torch.testing.assert_close(together[name][k], alone[name][0], rtol=1e-6, atol=1e-7, msg=name)


def test_a_block_that_stops_early_alone_keeps_its_result_beside_others():
    # Alone, block 0 has stalled after two iterations and never sees its last score; block 1 keeps on improving.
    script = [[0.5, 0.6, 0.6, 0.6, 0.1], [0.9, 0.8, 0.7, 0.6, 0.5]]
    settings = config(patience=2, n_outer=4)
    alone, _ = solve(Scripted(script[:1]), settings, torch.ones(1, 1, 1))
    together, stop = solve(Scripted(script), settings, torch.ones(2, 1, 1))
    assert stop.reason == "max_outer"
    assert together.best_score_K.tolist() == pytest.approx([0.5, 0.5])
    for name in {*together.tensors()} - {"outer", "inner"}:
        assert torch.equal(getattr(together, name)[0], getattr(alone, name)[0]), name


@pytest.mark.parametrize("order", ["x_first", "z_first"])
def test_a_state_that_was_written_and_read_continues_bit_for_bit(order, rng):
    problem = Box(torch.randn(2, 2, 3, generator=rng))
    solver = Admm(problem, config(order=order, rho_schedule="residual_balanced", n_inner=4))
    state = solver.step(solver.init(torch.randn(2, 2, 3, generator=rng)))
    for _ in range(4):
        read = AdmmState(**safetensors.torch.load(safetensors.torch.save(state.tensors())))
        state, other = solver.step(state), solver.step(read)
        for name, tensor in state.tensors().items():
            assert torch.equal(tensor, other.tensors()[name]), name


def test_the_first_state_can_be_written_too(rng):
    x = torch.rand(2, 2, 3, generator=rng)
    solver = Admm(Box(x), config(n_inner=4))
    for state in (solver.init(x), solver.init(x, codes=x)):
        read = AdmmState(**safetensors.torch.load(safetensors.torch.save(state.tensors())))
        assert torch.equal(solver.step(state).x, solver.step(read).x)


def test_a_step_leaves_the_state_that_it_was_given(rng):
    solver = Admm(Box(torch.randn(2, 2, 3, generator=rng)), PLAIN)
    state = solver.step(solver.init(torch.randn(2, 2, 3, generator=rng)))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    solver.step(state)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_rho_in_units_of_the_gradient(rng):
    problem, x = Box(torch.randn(3, 2, 3, generator=rng)), torch.randn(3, 2, 3, generator=rng)
    state = Admm(problem, config(rho_unit="gradient", rho=0.2)).init(x)
    gradient = x - problem.a_KBE
    torch.testing.assert_close(state.rho_K, 0.2 * gradient.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1))
    assert torch.equal(Admm(problem, config(rho=0.2)).init(x).rho_K, torch.full((3,), 0.2))


def test_needs_no_language_model_library():
    """Imported anew where none of them can be: a process of its own would wait seconds for torch."""
    unwanted = ("transformers", "tokenizers", "datasets", "gradmm.models", "gradmm.decoding", "gradmm.data.task")
    with patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("gradmm", *unwanted[:3])]:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(unwanted))  # to import one is an error
        anew = importlib.import_module("gradmm.solvers.admm")
    assert anew.Admm is not Admm and anew.torch is torch
    assert sys.modules["gradmm.solvers.admm"].Admm is Admm
