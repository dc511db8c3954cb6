"""Fits reproduce their closed forms and scikit-learn's, streamed or not."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from value_heads import FeatureSpec, Rows, fit_logistic, fit_mlp, fit_ridge, lambda_returns, response_rows
from value_heads.features import Block, features
from value_heads.fit import Moments, standard_units

SPEC = FeatureSpec(current=(0,))
WIDTH = 6


def rows(count: int, seed: int, *, noise: float = 0.5, prompt_effect: float = 0.0, per_group: int = 4) -> Rows:
    """Linear targets; ``prompt_effect`` moves targets and the first feature alike, prompt by prompt."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(0).normal(size=WIDTH)
    groups = np.arange(count) // per_group
    x = rng.normal(size=(count, WIDTH)) * np.array([1, 5, 0.1, 1, 1, 1]) + 2
    y = x @ truth + noise * rng.normal(size=count)
    shift = rng.normal(size=count // per_group + 1)[groups] * prompt_effect
    x[:, 0] += shift
    y -= 3 * shift
    return Rows(*(torch.tensor(a) for a in (x, y, rng.uniform(0.5, 2, size=count), groups)))


def split(batch: Rows, size: int) -> list[Rows]:
    return [Rows(*parts) for parts in zip(*(field.split(size) for field in batch), strict=True)]


@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_ridge_is_scikit_learns_on_standardised_features(alpha):
    batch = rows(200, seed=1)
    x, y, w = (field.numpy() for field in batch[:3])
    scaler = StandardScaler().fit(x, sample_weight=w)
    reference = Ridge(alpha=alpha * w.sum()).fit(scaler.transform(x), y, sample_weight=w)
    head = fit_ridge(SPEC, split(batch, 16), alphas=[alpha]).head
    got = head(batch.features.float()).numpy()
    np.testing.assert_allclose(got, reference.predict(scaler.transform(x)), atol=1e-4)


def test_fixed_effects_remove_what_a_prompt_shares():
    truth = np.random.default_rng(0).normal(size=WIDTH)
    batch = rows(2000, seed=2, noise=0.0, prompt_effect=5.0)
    pooled = fit_ridge(SPEC, [batch], alphas=[1e-9]).head.weight.numpy()
    within = fit_ridge(SPEC, split(batch, 400), alphas=[1e-9], within=True).head
    np.testing.assert_allclose(within.weight.numpy(), truth, atol=1e-4)
    assert abs(pooled[0] - truth[0]) > 1
    mean_error = (within(batch.features.float()) - batch.targets) @ batch.weights / batch.weights.sum()
    assert abs(mean_error) < 1e-4


@pytest.mark.parametrize("select", ["correlation", "loss"])
def test_heldout_rows_choose_alpha(select):
    train, heldout = rows(24, seed=3, noise=8.0), rows(400, seed=4, noise=8.0)
    alphas = (1e-6, 0.3, 1e3)
    fit = fit_ridge(SPEC, [train], [heldout], alphas=alphas, select=select)
    for alpha in alphas:
        head = fit_ridge(SPEC, [train], alphas=[alpha]).head
        predicted, target, w = head(heldout.features.float()).double(), heldout.targets, heldout.weights
        if select == "loss":
            expected = ((predicted - target) ** 2 @ w / w.sum()).item()
        else:
            for g in heldout.groups.unique():
                here = heldout.groups == g
                predicted[here] -= predicted[here] @ w[here] / w[here].sum()
                target[here] -= target[here] @ w[here] / w[here].sum()
            expected = (predicted * w @ target / ((w @ predicted**2) * (w @ target**2)).sqrt()).item()
        assert fit.scores[alpha] == pytest.approx(expected, rel=1e-4)
    best = max if select == "correlation" else min
    assert fit.chosen == best(fit.scores, key=fit.scores.get)
    with pytest.raises(ValueError, match="held-out"):
        fit_ridge(SPEC, [train], alphas=alphas)


def test_a_prior_is_that_of_as_many_rows_as_the_weights_sum_to():
    """Its block's posterior mean in closed form, whatever alpha; alpha goes on governing the other block."""
    spec = FeatureSpec(current=(0,), position=True)
    batch = rows(60, seed=8)
    batch = batch._replace(features=torch.cat([batch.features, batch.features[:, :1] ** 2], 1))
    x, y, w = batch.features, batch.targets, batch.weights
    x, y = x - w @ x / w.sum(), y - w @ y / w.sum()
    for alpha in (1e-3, 10.0):
        fit = fit_ridge(spec, [batch], alphas=[alpha], block_priors={Block("position"): 0.2}).head
        penalty = torch.cat([alpha * w.sum() * (w @ x[:, :-1] ** 2 / w.sum()), torch.tensor([1 / 0.2**2]).double()])
        expected = torch.linalg.solve(x.T @ (x * w[:, None]) + penalty.diag(), x.T @ (w * y))
        torch.testing.assert_close(fit.weight.double(), expected, atol=1e-4, rtol=1e-3)


def test_a_blocks_total_variance_in_standard_units_is_its_scale_squared():
    spec, variance = FeatureSpec(current=(0,), position=True), torch.tensor([1.0, 3.0, 0.5, 0.0])
    std = standard_units(spec, variance, {Block("current", 0): 4.0})
    torch.testing.assert_close((variance / std**2)[:3].sum(), torch.tensor(4.0**2))
    assert len(std[:3].unique()) == 1 and std[3] == 1  # of a constant feature


def test_logistic_is_scikit_learns():
    batch = rows(300, seed=5)
    labels = (batch.targets > batch.targets.mean()).double()
    batch = batch._replace(targets=labels)
    x, w = batch.features.numpy(), batch.weights.numpy()
    scaler = StandardScaler().fit(x, sample_weight=w)
    reference = LogisticRegression(C=1 / (0.01 * w.sum()), tol=1e-10, max_iter=1000)
    reference.fit(scaler.transform(x), labels.numpy(), sample_weight=w)
    head = fit_logistic(SPEC, split(batch, 64), alphas=[0.01]).head
    expected = reference.decision_function(scaler.transform(x))
    np.testing.assert_allclose(head(batch.features.float()).numpy(), expected, atol=1e-3)


@pytest.mark.slow(20)
def test_mlp_learns_what_a_line_cannot():
    def curved(seed: int) -> Rows:
        batch = rows(2000, seed)
        return batch._replace(targets=(batch.features[:, 3] - 2) ** 2)

    train, heldout = curved(6), curved(7)
    linear = fit_ridge(SPEC, [train], [heldout], alphas=[0.01])
    fit = fit_mlp(SPEC, split(train, 500), [heldout], hidden=(32,), batch_size=64, learning_rate=5e-3, seed=1)
    repeated = fit_mlp(SPEC, split(train, 500), [heldout], hidden=(32,), batch_size=64, learning_rate=5e-3, seed=1)
    assert fit.scores[fit.chosen] > 0.9 > 0.3 > linear.scores[0.01]
    assert fit.chosen == max(fit.scores, key=fit.scores.get)
    assert fit.scores == repeated.scores


def test_rows_of_an_mlp_fit_count_by_their_weights():
    """Two targets of each input: the heavier one is what is learned."""
    x, heavy = torch.tensor(np.random.default_rng(0).normal(size=(200, WIDTH))).repeat(2, 1), torch.arange(400) < 200
    targets, weights = torch.where(heavy, x[:, 0], -x[:, 0]), torch.where(heavy, 1.0, 0.01).double()
    batch = Rows(x, targets, weights, torch.arange(400) % 200)
    fit = fit_mlp(SPEC, [batch], [batch], learning_rate=1e-2, dropout=0.0, batch_size=100)
    predicted = fit.head(x.float()[:200])
    assert np.corrcoef(predicted.detach().numpy(), x[:200, 0].numpy())[0, 1] > 0.9


@pytest.mark.parametrize("patience", [1, 3])
def test_an_mlp_fit_ends_so_many_epochs_after_its_best(patience):
    """Held-out targets are the opposite of what is learned: the first epoch is the best."""
    train, heldout = rows(200, seed=3), rows(200, seed=4)
    opposite = heldout._replace(targets=-heldout.targets)
    fit = fit_mlp(SPEC, [train], [opposite], learning_rate=1e-2, patience=patience, select="loss")
    assert fit.chosen == 1 and list(fit.scores) == list(range(1, 2 + patience))


def test_an_mlp_fit_can_be_stopped_at_a_batch():
    batches = iter(range(3))
    with pytest.raises(StopIteration):
        fit_mlp(SPEC, split(rows(2000, 3), 500), [rows(400, 4)], batch_size=64, on_batch=lambda: next(batches))
    assert not list(batches)


def test_rows_are_what_a_search_compares_after_every_chunk():
    """Responses of 2, 4 and 5 tokens at chunks of 2: those that have ended stay, at their last token."""
    hidden = {0: torch.arange(15.0).reshape(3, 5, 1)}
    spec = FeatureSpec(current=(0,), position=False)
    args = torch.tensor([5.0, -1.0, 3.0]), torch.tensor([2, 4, 5]), torch.tensor([9, 9, 9])
    batch = response_rows(features(spec, hidden), *args, stride=2)
    assert batch.features[:, 0].tolist() == [1, 1, 1, 6, 8, 8, 11, 13, 14]
    assert batch.targets.tolist() == [5, 5, 5, -1, -1, -1, 3, 3, 3]
    torch.testing.assert_close(batch.weights, torch.tensor([3, 2, 1] * 3) / 6)  # of 3 responses so many grew
    assert batch.groups[:3].tolist() == batch.groups[3:6].tolist() == batch.groups[6:].tolist()
    assert len(batch.groups.unique()) == 3


def test_a_prompt_whose_responses_have_all_ended_is_compared_no_more():
    hidden = {0: torch.arange(16.0).reshape(4, 4, 1)}
    spec = FeatureSpec(current=(0,), position=False)
    args = torch.tensor([5.0, -1.0, 3.0, 2.0]), torch.tensor([1, 2, 4, 4]), torch.tensor([7, 7, 3, 3])
    batch = response_rows(features(spec, hidden), *args, torch.tensor([0.25, 0.75, 0.5, 0.5]), stride=1)
    assert batch.features[:, 0].tolist() == [0, 0, 4, 5, *range(8, 16)]
    share = torch.tensor([1, 0.75]) / 1.75
    torch.testing.assert_close(batch.weights, torch.cat([0.25 * share, 0.75 * share, torch.full((8,), 0.5 / 4)]))


def test_equal_lengths_are_compared_token_by_token():
    generator = torch.Generator().manual_seed(0)
    hidden = {0: torch.randn(6, 3, 2, generator=generator)}
    values = features(SPEC, hidden)
    batch = response_rows(values, torch.arange(18.0).reshape(6, 3), torch.full((6,), 3), torch.arange(6) // 3)
    torch.testing.assert_close(batch.features, values.flatten(0, 1))
    assert batch.targets.tolist() == list(range(18))
    assert batch.groups.tolist() == [*[0, 1, 2] * 3, *[3, 4, 5] * 3]
    torch.testing.assert_close(batch.weights, torch.full((18,), 1 / 3))


def test_lambda_returns_closed_forms():
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 0.0, 0.0]])
    rewards = torch.tensor([10.0, -1.0])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert lambda_returns(values, rewards, mask, 1.0).tolist() == [[10, 10, 10, 10], [-1, -1, 0, 0]]
    assert lambda_returns(values, rewards, mask, 0.0).tolist() == [[2, 4, 8, 10], [5, -1, 0, 0]]
    half = lambda_returns(values, rewards, mask, 0.5)
    # G_t = (1 - lam) sum_n lam^(n-1) V_{t+n} + lam^(T-t) r, the n-step mixture written out
    assert half[0, 1] == pytest.approx(0.5 * (4 + 0.5 * 8) + 0.25 * 10)


def test_every_fit_takes_the_rows_of_real_responses():
    torch.manual_seed(0)
    hidden = {0: torch.randn(40, 5, 3)}
    rewards = (hidden[0][:, :, 0].sum(1) > 0).double().numpy()
    spec = FeatureSpec(current=(0,), summed=(0,))
    args = features(spec, hidden), torch.from_numpy(rewards), torch.full((40,), 5), torch.arange(40) // 4
    train = [response_rows(*args)]
    fits = [
        fit_ridge(spec, train, train),
        fit_logistic(spec, train, train),
        fit_mlp(spec, train, train, learning_rate=1e-2),
    ]
    assert all(fit.scores[fit.chosen] > 0.2 for fit in fits)


@pytest.mark.parametrize("within", [True, False])
def test_moments_add_up_to_those_of_all_rows(within):
    batches = [rows(120, seed=seed, prompt_effect=2.0) for seed in (1, 2)]
    together = Moments([batches[0]], within) + Moments([batches[1]], within)
    expected = fit_ridge(SPEC, batches, alphas=[0.1], within=within).head
    head = fit_ridge(SPEC, together, alphas=[0.1], within=within).head
    torch.testing.assert_close(head.weight, expected.weight)
    assert head.bias == pytest.approx(expected.bias)
    with pytest.raises(ValueError, match="within groups"):
        fit_ridge(SPEC, together, alphas=[0.1], within=not within)
