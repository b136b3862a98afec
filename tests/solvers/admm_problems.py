"""Problems for ADMM whose solution is known."""

import torch

from gradmm.solvers.admm import Admm, AdmmConfig

PLAIN = AdmmConfig(
    n_outer=200,
    n_inner=40,
    learning_rate=0.02,
    rho=1.0,
    rho_unit="absolute",
    max_grad_norm=None,
    relative_tolerance=0,
)


def config(**changes):
    return PLAIN.model_copy(update=changes)


class Box:
    """f(x) = |x - a|^2 / 2 on a box: the optimum is a, clipped. Codes are the points themselves."""

    def __init__(self, a_KBE, low=-0.5, high=0.5):
        self.a_KBE, self.low, self.high = a_KBE, low, high

    def objective(self, x):
        return (x - self.a_KBE).square().flatten(1).sum(1) / 2

    def project(self, v):
        z = v.clamp(self.low, self.high)
        return z, z.clone()

    def score(self, codes):
        return self.objective(codes)

    @property
    def optimum(self):
        return self.a_KBE.clamp(self.low, self.high)


class Scripted:
    """Nothing to optimise; the i-th projection has the code i and the score that the script gives it."""

    def __init__(self, script_KI):
        self.script_KI, self.calls = torch.tensor(script_KI), 0

    def objective(self, x):
        return x.square().flatten(1).sum(1)

    def project(self, v):
        codes = torch.full(v.shape[:3], self.calls)
        self.calls += 1
        return v.clone(), codes

    def score(self, codes):
        return self.script_KI[torch.arange(len(codes)), codes[:, 0, 0]]


def solve(problem, settings, x, codes=None):
    solver = Admm(problem, settings)
    state = solver.init(x, codes)
    while (stop := solver.stop(state)) is None:
        state = solver.step(state)
    return state, stop
