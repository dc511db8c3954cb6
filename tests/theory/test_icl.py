"""In-context classification: data, two implementations of one model, pruning, the run's golden numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from theory.icl.classical import LEARNERS, classical_error
from theory.icl.data import Data, draw, in_domain, out_of_domain, tasks
from theory.icl.experiment import IclConfig, evaluate
from theory.icl.job import JOB, SMOKE
from theory.icl.model import Models, Setting, dense_loss, gradient, misclassified, prefix_outputs, train
from theory.icl.pruning import pruned
from theory.icl.studies import check_unseen
from theory.icl.three_layers import zero_one_error
from training.run import Run

DATA = Data(M1=4, M2=6, d=10, d_y=8, beta=2.0)


def a_setting() -> Setting:
    pairs, _ = tasks(4, 8)
    return Setting(DATA, torch.tensor([0.8, 0.5]), torch.tensor([6, 6]), pairs, batch=32, neurons=20, std=0.3)


def some_models() -> Models:
    torch.manual_seed(0)
    width = DATA.width
    return Models(*(torch.randn(2, width, width) / 4 for _ in range(3)), torch.randn(2, 20, width))


def test_training_tasks_leave_others_unseen_and_every_pattern_in_both_roles() -> None:
    training, unseen = tasks(6, 12)
    pairs = {tuple(pair) for pair in torch.cat([training, unseen]).tolist()}
    assert len(pairs) == 30 and all(a != b for a, b in pairs)
    assert torch.bincount(training[:, 0]).tolist() == torch.bincount(training[:, 1]).tolist() == [2] * 6


def test_prompts_have_the_fractions_and_labels_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.tensor([[2, 0]])
    batch = draw(generator, DATA, pairs, torch.tensor([50]), torch.tensor([0.6]), 400)
    shown, labels = batch.relevant[0, :, :-1], batch.label[0, :, :-1]
    for pattern, share in ((2, 0.3), (0, 0.3), (1, 0.2), (3, 0.2)):
        assert (shown == pattern).float().mean() == pytest.approx(share, abs=0.01)
    assert (labels[shown == 2] == 1).all() and (labels[shown == 0] == -1).all()
    assert labels[shown == 1].mean() == pytest.approx(0, abs=0.05)
    query = batch.relevant[0, :, -1]
    assert set(query.tolist()) == {0, 2} and ((batch.label[0, :, -1] == 1) == (query == 2)).all()


@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_gathered_columns_and_the_gradient_written_out_are_the_dense_model_and_autograd(scale: float) -> None:
    models, setting = some_models(), a_setting()
    models.O *= scale
    batch = draw(torch.Generator().manual_seed(1), DATA, setting.pairs, setting.lengths, setting.alphas, 16)
    tokens, labels = in_domain(DATA).tokens(batch, DATA), batch.label[..., -1]
    loss, slopes = gradient(models, batch, DATA)
    for run in range(2):
        past = labels[run] * prefix_outputs(models.single(run), tokens[run], [6])[:, 0] > 1
        assert (0.2 < past.float().mean() < 1) if scale > 1 else not past.any()  # with and without prompts left out
        free = [each.clone().requires_grad_() for each in models.single(run).parameters]
        dense = dense_loss(Models(*free), tokens[run], labels[run])
        assert torch.allclose(loss[run], dense, rtol=1e-4)
        for ours, theirs in zip(slopes.single(run).parameters, torch.autograd.grad(dense, free), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max())) and theirs.abs().max() > 1e-3


def test_shorter_prompts_leave_their_last_columns_unread() -> None:
    models, data = some_models(), a_setting()
    lengths = torch.tensor([6, 3])
    batch = draw(torch.Generator().manual_seed(1), DATA, data.pairs, lengths, data.alphas, 16)
    loss, _ = gradient(models, batch, DATA)
    tokens = in_domain(DATA).tokens(batch, DATA)[1]
    short = torch.cat([tokens[:, :3], tokens[:, -1:]], dim=1)
    assert torch.allclose(loss[1], dense_loss(models.single(1), short, batch.label[1, :, -1]), atol=1e-5)


@pytest.mark.parametrize("logit_scale", [1.0, 100.0])
def test_a_prefix_is_a_shorter_prompt(logit_scale: float) -> None:
    models, setting = some_models().single(0), a_setting()
    models.Q *= logit_scale  # e^logit underflows where logits differ by hundreds
    batch = draw(torch.Generator().manual_seed(1), DATA, setting.pairs, setting.lengths, setting.alphas, 16)
    tokens, label = in_domain(DATA).tokens(batch, DATA)[0], batch.label[0, :, -1]
    outputs = prefix_outputs(models, tokens, [1, 3, 6])
    for i, length in enumerate((1, 3, 6)):
        short = torch.cat([tokens[:, :length], tokens[:, -1:]], dim=1)
        margins = torch.stack([dense_loss(models, short[j : j + 1], label[j : j + 1]) for j in range(16)])
        assert torch.allclose((1 - label * outputs[:, i]).relu(), margins, rtol=1e-3, atol=1e-5)


def test_an_output_without_a_sign_is_wrong(tmp_path: Path) -> None:
    assert misclassified(torch.tensor([0.5, -0.5, 0.0, torch.nan]), torch.ones(4)).tolist() == [0, 1, 1, 1]
    config = IclConfig(models=1, prompts=40, lengths=(2, 5))
    batch = draw(torch.Generator(), config.data(), tasks(6, 12)[0], torch.tensor([5]), torch.tensor([0.8]), 40)
    assert zero_one_error(torch.full((40, 1), torch.nan), batch) == 1
    models = Models.start(config.setting(torch.tensor([0.8])), 0)
    models.O *= torch.nan
    assert (evaluate(config, Run(tmp_path, 0), models, config.data(), "unseen", 0.8, 1)["error"] == 1).all()


def test_the_check_of_unseen_tasks_names_the_context_that_it_reads(tmp_path: Path) -> None:
    run, error = Run(tmp_path, 0), {"mean": [0.1, 5e-4], "high": [0.2, 2e-3]}
    check_unseen({"lengths": [5, 10], "places": {"unseen": {"error": error}}}, run)
    assert "context 10" in run.checks[0]["name"] and run.checks[0]["got"] == [5e-4, 2e-3] and run.checks[0]["holds"]


def test_runs_trained_together_are_those_trained_in_parts_and_do_not_touch() -> None:
    setting = a_setting()

    def trained(start: Models, *parts: tuple[int, int]) -> Models:
        for begin, end in parts:
            start = train(start, setting, lambda s: s, begin, end, lambda *_: None)
        return start

    uninterrupted = trained(Models.start(setting, 0), (0, 8))
    parts = trained(Models.start(setting, 0), (0, 3), (3, 8))
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters, parts.parameters, strict=True))
    changed = Models.start(setting, 0)
    changed.O[1] = 0  # the second run changes; the first must not
    trained_changed = trained(changed, (0, 8))
    assert torch.allclose(trained_changed.O[0], uninterrupted.O[0], atol=1e-6) and not torch.allclose(
        trained_changed.O[1], uninterrupted.O[1]
    )


def test_out_of_domain_patterns_have_the_sum_asked_for() -> None:
    mean = out_of_domain(np.random.default_rng(0), Data(), 3, 1.3, "mean").relevant
    assert torch.allclose(mean.sum(1), torch.tensor(3 * 1.3)) and (mean[:, 6:] == 0).all()
    ortho = out_of_domain(np.random.default_rng(0), Data(), 3, 1.3, "orthonormal")
    assert torch.allclose(ortho.relevant @ ortho.relevant.T, 9 * torch.eye(3), atol=1e-5)
    assert torch.allclose(ortho.relevant.sum(1), torch.tensor(3 * 1.3), atol=1e-5)
    assert (ortho.irrelevant[:, :6] == 0).all()


def test_pruning_takes_the_rows_it_says() -> None:
    models, generator = some_models(), torch.Generator().manual_seed(0)
    norms = models.O.norm(dim=-1)
    for order, expected_norms in (("small", norms.sort().values[:, 8:]), ("large", norms.sort().values[:, :12])):
        pruned_norms = pruned(models, 0.4, order, generator).O.norm(dim=-1)
        assert torch.allclose(pruned_norms[pruned_norms > 0].reshape(2, 12).sort().values, expected_norms)
    assert ((pruned(models, 0.4, "random", generator).O.norm(dim=-1) == 0).sum(1) == 8).all()


def test_classical_learners_learn_what_is_separable_and_nothing_from_one_label() -> None:
    rng = np.random.default_rng(0)
    y = np.where(rng.random((20, 11)) < 0.5, 1.0, -1.0)
    x = y[..., None] * np.ones(3) + 0.1 * rng.standard_normal((20, 11, 3))
    for name in LEARNERS:
        assert classical_error(name, x, y, 10) <= 0.05
    same = np.ones((4, 3))
    same[:2, -1] = -1
    assert classical_error("logistic", x[:4, :3], same, 2) == 0.5


def test_classical_learners_learn_from_the_first_examples() -> None:
    """The labels of the first two are those of the query's rule, those of the next two are the opposite."""
    x, y = np.array([[[1.0], [-1.0], [-1.0], [1.0], [1.0]]]), np.array([[1.0, -1.0, 1.0, -1.0, 1.0]])
    opposite_first = [2, 3, 0, 1, 4]
    for name in LEARNERS.keys() - {"3-NN"}:  # it has no majority among two
        assert classical_error(name, x, y, 2) == 0
        assert classical_error(name, x[:, opposite_first], y[:, opposite_first], 2) == 1


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"alpha": 1.2}, r"alpha is a fraction of the examples, in \(0, 1\], not 1.2"),
        ({"d": 29}, r"d=29 is smaller than the 6 \+ 24 patterns"),
        ({"tasks": 3}, "3 training tasks of 30: give at least M1=6"),
        ({"rate_patterns": (3, 6, 9)}, "6 training tasks of 6: give at least M1=3"),
        ({"rate_patterns": (4, 6)}, "rate_patterns\n  Tuple should have at least 3 items"),
        ({"rate_alphas": (1.5, 0.5)}, r"rate_alphas is a fraction of the examples, in \(0, 1\], not 1.5"),
        ({"test_alphas": (0, 0.5)}, r"test_alphas is a fraction of the examples, in \(0, 1\], not 0"),
        ({"train_alphas": (-0.1, 0.2)}, r"train_alphas is a fraction of the examples, in \(0, 1\], not -0.1"),
        ({"lengths": (0, 5)}, "lengths.0\n  Input should be greater than 0"),
        ({"models": 0}, "models\n  Input should be greater than 0"),
        ({"odr": 4}, "4 patterns of disjoint pairs need M1 >= 8"),
        ({"odr": 2}, "odr\n  Input should be greater than or equal to 3"),
        ({"M1": 4, "tasks": 8}, "3 patterns of disjoint pairs need M1 >= 6, not 4"),
        ({"lengths": ()}, "lengths\n  Tuple should have at least 1 item"),
        ({"test_alphas": ()}, "test_alphas\n  Tuple should have at least 1 item"),
        ({"train_lengths": (20, 2, 9)}, r"lengths must be positive and increase, unlike \[20, 2, 9\]"),
        ({"rate_iterations": 9}, "rate_iterations\n  Input should be greater than or equal to 10"),
    ],
)
def test_bad_input_says_what_to_change(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        JOB.Config.model_validate(bad)


@pytest.mark.slow(10)
def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    chosen = ("mechanism", "unseen", "pruning")
    result = JOB.execute(SMOKE | {"studies": chosen}, tmp_path)
    assert all(check["holds"] for check in result["checks"]), [c for c in result["checks"] if not c["holds"]]
    assert (tmp_path / "figures" / "pruning.png").exists()


@pytest.mark.slow(6)
def test_steps_grow_with_the_relevant_patterns_but_slower_than_in_proportion(tmp_path: Path) -> None:
    fewer = {"rate_models": 2, "batch": 100, "rate_patterns": (4, 7, 12), "rate_iterations": 300}
    result = JOB.execute({**SMOKE, **fewer, "studies": ["scaling"]}, tmp_path)
    fit = result["studies"]["scaling"]["fits"]["M1"]
    assert fit["expected"] == pytest.approx(1.27, abs=0.01)  # of M1 √log M1 at these values
    assert 0.2 < fit["slope"]["mean"] < 0.6 and fit["needed"]["mean"][0] > 30
