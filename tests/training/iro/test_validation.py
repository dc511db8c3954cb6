"""Which beta held-out rewards choose."""

from __future__ import annotations

from training.iro.validation import better_beta


def test_another_beta_is_chosen_only_where_it_is_surely_better() -> None:
    base = [0.0, 0.1, -0.1, 0.05]
    by = {1.0: base, 0.5: [r + d for r, d in zip(base, (0.5, -0.2, 0.4, 0.1), strict=True)]}
    beta, report = better_beta(by | {2.0: [r + 1 for r in base]})
    assert beta == 2.0 and "on 4 prompts" in report and "2: +1.000 ± 0.000" in report
    beta, report = better_beta(by | {2.0: [r - 1 for r in base]})
    assert beta == 1.0  # .5 is better by 0.20, with a standard error of 0.16


def test_of_several_betas_that_are_surely_better_the_best_is_chosen() -> None:
    base = [0.0, 0.1, -0.1, 0.05]
    for gains in ({0.5: 2.0, 2.0: 1.0}, {0.5: 1.0, 2.0: 2.0}):
        beta, _ = better_beta({1.0: base} | {beta: [reward + gain for reward in base] for beta, gain in gains.items()})
        assert gains[beta] == 2.0
