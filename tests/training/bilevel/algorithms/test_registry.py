"""The registry: every algorithm runs on the quadratics, and a module that is added is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from training.bilevel import algorithms, topology
from training.bilevel.algorithms.method import ProblemSetup
from training.bilevel.algorithms.registry import METHODS, collect_methods
from training.bilevel.problem import BilevelProblem
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import PROBLEM
from training.bilevel.studies.comparison import run_method
from training.bilevel.studies.hyper_cleaning import COMPARED
from training.bilevel.studies.ready_problems import DECENTRALIZED, SERVER

AGENTS = 5
BATCH = quadratic.draw(AGENTS, x_size=3, y_size=4, heterogeneity=0.5, seed=0)
RING = topology.ring(AGENTS, 0.5)
SETUPS = [
    ProblemSetup(PROBLEM, RING, torch.full((3,), start).double(), torch.zeros(4).double(), 0.05, 0.2, 0.5, 0.5)
    for start in (0.0, 1.0)
]
NEW_MODULE = """
from training.bilevel.algorithms.method import BilevelMethod, neighbour_bytes
from training.bilevel.algorithms.sparkle import Sparkle, exact_diffusion

def build(setup):
    level = exact_diffusion(setup.W)
    return Sparkle(setup.problem, level, level, setup.alpha, setup.beta, setup.beta)

METHODS = {"NAME": BilevelMethod(build=build, evaluations=3, bytes_sent=neighbour_bytes(1, 2))}
"""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_approaches_the_solution_of_its_runs(name: str) -> None:
    """All but single-level ED, which leaves x; two runs from different x, whose errors are recorded."""
    method, solution = METHODS[name], quadratic.solution(BATCH)
    errors: list[torch.Tensor] = []

    def record(state: object) -> None:
        x, y = method.variables(state)
        assert y.shape[0] == 2 and y.shape[-1] == 4
        errors.append((x.mean(1) - solution).square().sum(-1))

    def draw_batch() -> quadratic.Quadratic:
        return quadratic.Quadratic(*(leaf.expand(2, *leaf.shape) for leaf in BATCH))

    noise = torch.Generator().manual_seed(0)
    run_method(method, SETUPS, BATCH, draw_batch, noise, [0, 100], record)
    assert method.bytes_sent(SETUPS[0]) > 0
    if name == "single-level ED":
        torch.testing.assert_close(errors[1], errors[0])
    else:
        assert (errors[1] < 0.5 * errors[0]).all(), errors


@pytest.mark.parametrize("name", [name for name in METHODS if name != "single-level ED"])
def test_a_step_is_counted_by_its_gradients_and_products(name: str) -> None:
    """A call of f gives a gradient, one of g a gradient or a product, and the last one both where both are used."""
    calls: list[str] = []

    def upper(*arguments: Any) -> torch.Tensor:
        calls.append("f")
        return quadratic.upper(*arguments)

    def lower(*arguments: Any) -> torch.Tensor:
        calls.append("g")
        return quadratic.lower(*arguments)

    algorithm = METHODS[name].build(SETUPS[0]._replace(problem=BilevelProblem(upper, lower)))
    state = algorithm.start(SETUPS[0].x, SETUPS[0].y, BATCH)
    calls.clear()
    algorithm.step(state, BATCH, torch.Generator())
    uses_both = name != "MA-DSBO-GT"  # which has moved y before
    assert METHODS[name].evaluations == len(calls) + uses_both


def test_the_inner_steps_of_a_double_loop_add_up_to_the_step_of_the_others() -> None:
    algorithm = METHODS["MA-DSBO-GT"].build(SETUPS[0])
    assert algorithm.inner * algorithm.beta == algorithm.inner * algorithm.gamma == pytest.approx(SETUPS[0].beta)


def test_studies_compare_methods_of_the_registry() -> None:
    assert {*COMPARED, *DECENTRALIZED, *SERVER} <= METHODS.keys()


def test_a_module_in_the_package_is_all_that_a_new_algorithm_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_algorithm.py").write_text(NEW_MODULE.replace("NAME", "My algorithm"))
    (tmp_path / "my_second_ed.py").write_text("METHODS = {}")
    monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(tmp_path)])
    assert collect_methods().keys() == METHODS.keys() | {"My algorithm"}
    (tmp_path / "my_third_ed.py").write_text(NEW_MODULE.replace("NAME", "ED"))
    with pytest.raises(ValueError, match=r"another module has a method ED; rename it$"):
        collect_methods()
