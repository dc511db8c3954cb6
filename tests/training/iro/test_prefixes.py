"""What rollouts store for a fit: the same features as whole responses give, at every fourth token and the last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.training.iro.toy_job import Killed, job
from training.checkpoints import WithTables, open_checkpoints
from training.iro.config import AlignConfig
from training.iro.data import AlignError, Prompt
from training.iro.fit import MOST_DEVIATIONS, Scale, Shards
from training.iro.prefixes import Prefixes, prefix_lengths, prefix_table
from training.iro.rollouts import PREFIXES, completions_of, stored
from value_heads import FeatureSpec, LinearHead, features, lambda_returns, response_rows
from value_heads.features import TOKENS
from value_heads.text_counts import pack

SPEC = FeatureSpec(
    current=(1,),
    summed=(0, 2),
    averaged=(2,),
    decayed=((0, 0.5),),
    counted=(0, 2, 5),
    text_counts=pack(["A", "Ġbc", ".", None, None, "Ġ1", "Ċ"]),
    stop_ids=(3, 4),
    horizon=8,
)
LENGTHS = (9, 4, 1, 7, 12)
WIDTH = 3


def completions(seed: int = 0) -> tuple[list[list[int]], list[dict[int, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(0, 7, (length,), generator=generator).tolist() for length in LENGTHS]
    hidden = [{layer: torch.randn(n, WIDTH, generator=generator) for layer in (0, 1, 2)} for n in LENGTHS]
    return tokens, hidden


def dense(tokens: list[list[int]], hidden: list[dict[int, Tensor]]) -> Tensor:
    """Features at every token, [R, T, F]."""
    padded = {layer: pad_sequence([states[layer] for states in hidden], batch_first=True) for layer in (0, 1, 2)}
    padded[TOKENS] = pad_sequence([torch.tensor(row) for row in tokens], batch_first=True, padding_value=-1)
    return features(SPEC, padded)


def test_every_fourth_token_and_the_last() -> None:
    assert [prefix_lengths(n) for n in (0, 1, 4, 9)] == [[], [1], [4], [4, 8, 9]]


def test_features_at_prefixes_are_those_of_whole_responses() -> None:
    tokens, hidden = completions()
    chosen = [0, 2, 3, 4]
    table = prefix_table(SPEC, hidden)
    found = Prefixes(table, chosen, [tokens[i] for i in chosen]).features(SPEC)
    expected = dense(tokens, hidden)
    expected_NF = torch.cat([expected[i, torch.tensor(prefix_lengths(LENGTHS[i])) - 1] for i in chosen])
    torch.testing.assert_close(found, expected_NF, rtol=2**-10, atol=1e-3)


class Folder:
    """Shards of one folder of checkpoints."""

    def __init__(self, path: Path) -> None:
        self.checkpoints = open_checkpoints(str(path))
        self.load, self.table = self.checkpoints.load, self.checkpoints.table

    def stop_if_asked(self) -> None:
        pass


def test_rollouts_that_were_stored_for_other_features_say_so() -> None:
    """A job that an earlier version began, whose default read other states."""
    tokens, hidden = completions()
    prefixes = Prefixes(prefix_table(SPEC, hidden), range(len(LENGTHS)), tokens)
    with pytest.raises(AlignError, match="start the job anew"):
        prefixes.features(FeatureSpec(averaged=(1,), position=False))


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_rows_are_those_of_whole_responses(tmp_path: Path, lam: float) -> None:
    tokens, hidden = completions()
    prompts = [Prompt(7, (1,), {}), Prompt(3, (1,), {}), Prompt(7, (2,), {})]  # two searches of one prompt
    groups = [tokens[:2], tokens[2:3], tokens[3:]]
    shard = {
        "prompts": [p.index for p in prompts],
        "tokens": groups,
        "usage": {},
        "drift": [],
        "prefixes": prefix_table(SPEC, hidden),
    }
    source = Folder(tmp_path)
    about = {"metrics_bytes": 0, "seconds": 0.0}
    source.checkpoints.save("rollouts", stored(shard), about)
    source.checkpoints.save("rewards", {"rewards": [[1.0, 2.0], [float("nan")], [0.5, -1.0]]}, about)
    assert completions_of(source, "rollouts") == groups
    generator = torch.Generator().manual_seed(1)
    head = LinearHead(SPEC, torch.randn(SPEC.width(WIDTH), generator=generator), 0.1)
    (rows,) = Shards(source, [("rollouts", "rewards")], Scale(1.0, 2.0), SPEC, None if lam == 1 else head, lam)
    graded = [0, 1, 3, 4]
    lengths, rewards = torch.tensor([LENGTHS[i] for i in graded]), torch.tensor([0.0, 0.5, -0.25, -1.0])
    features_RTF = dense(tokens, hidden)[graded]
    targets = rewards
    if lam < 1:  # of the chain of prefixes, four tokens a step
        targets = torch.zeros(features_RTF.shape[:2])
        for r, n in enumerate(lengths.tolist()):
            last = torch.tensor(prefix_lengths(n)) - 1
            values, mask = head(features_RTF[r, last])[None], torch.ones(1, len(last), dtype=torch.bool)
            targets[r, last] = lambda_returns(values, rewards[r : r + 1], mask, lam**4)[0]
    expected = response_rows(features_RTF, targets, lengths, torch.full((4,), 7), torch.full((4,), 0.25), stride=4)
    torch.testing.assert_close(rows.features, expected.features, rtol=2**-10, atol=1e-3)
    torch.testing.assert_close(rows.targets, expected.targets, rtol=1e-2, atol=1e-2)
    assert torch.equal(rows.weights, expected.weights) and torch.equal(rows.groups, expected.groups)


def test_states_are_stored_at_prefixes_alone_and_go_with_their_iteration(config: AlignConfig, tmp_path: Path) -> None:
    """Six tokens a response have prefixes of 4 and 6: two rows of a state and a sum, a scale each."""
    stop_at: list[Path] = []

    def should_stop() -> bool:
        stop_at.extend((tmp_path / "run/checkpoints").glob("2-train-0-rewards.pt"))
        if stop_at:
            raise Killed
        return False

    with pytest.raises(Killed):
        job().execute(config, tmp_path / "run", should_stop=should_stop)
    checkpoints = open_checkpoints(str(tmp_path / "run/checkpoints"))
    tables = {path.name for path in (tmp_path / "run/checkpoints").glob("*.prefixes.arrow")}
    assert {name[0] for name in tables} == {"2"}  # none of the first iteration, which was reported
    table = checkpoints.table("2-train-0-rollouts", PREFIXES)
    finals = [
        row for group in completions_of(Folder(tmp_path / "run/checkpoints"), "2-train-0-rollouts") for row in group
    ]
    assert len(table) == sum(len(prefix_lengths(len(row))) for row in finals) < sum(map(len, finals)) / 2
    vectors = [feature for name, feature in table.features.items() if name.endswith(("_1", "_0_1"))]
    assert {feature.feature.dtype for feature in vectors} == {"float16"} and len(vectors) == 2
    job().execute(config, tmp_path / "run")
    tables = {path.name.split(".")[-2] for path in (tmp_path / "run/checkpoints").glob("*.arrow")}
    assert tables == {"completions"}


@pytest.mark.parametrize("location", ["folder", "memory"])
def test_tables_of_a_checkpoint_are_replaced_and_dropped_with_it(location: str, tmp_path: Path) -> None:
    from datasets import Dataset

    place = str(tmp_path / "here") if location == "folder" else f"memory://{tmp_path.name}"
    checkpoints = open_checkpoints(place)
    about = {"metrics_bytes": 0, "seconds": 0.0}
    for number in (1, 2):
        table = Dataset.from_dict({"x": [number]})
        checkpoints.save("step", WithTables(number, {"a": table, "b": table}), about)
    for reader in (checkpoints, open_checkpoints(place)):
        assert reader.load("step") == 2 and reader.table("step", "a")["x"][:] == [2]
    with pytest.raises(KeyError, match="no table 'c'"):
        checkpoints.table("step", "c")
    checkpoints.drop_table("step", "a")
    checkpoints.drop_table("step", "a")
    for reader in (checkpoints, open_checkpoints(place)):
        assert reader.names() == ["step"] and reader.table("step", "b")["x"][:] == [2]
        with pytest.raises(KeyError, match="no table 'a'"):
            reader.table("step", "a")


@pytest.mark.parametrize(("unit", "offset"), [(1.0, 1e9), (1e60, 0.0), (1e-60, 0.0)])
def test_standardised_rewards_depend_on_neither_their_unit_nor_their_offset(unit: float, offset: float) -> None:
    """Though no float32 holds them, or tells one from the next."""
    rewards = [0.0, 1.0, 5.0]
    standard = Scale(2.0 * unit + offset, unit).standard([reward * unit + offset for reward in rewards])
    torch.testing.assert_close(standard, torch.tensor([-2.0, -1.0, 3.0]))


def test_a_reward_far_from_those_of_the_first_rollouts_stays_finite() -> None:
    assert Scale(0.0, 1.0).standard([1e90, -1e90]).tolist() == [MOST_DEVIATIONS, -MOST_DEVIATIONS]
