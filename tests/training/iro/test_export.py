"""Rollouts of a finished run as a set that TRL's SFTTrainer takes: prompt-completion, with rewards."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from datasets import load_from_disk
from typer.testing import CliRunner

from iro_server.cli.main import app
from tests.training.iro.toy_job import Digits, job
from training.iro.config import AlignConfig
from training.iro.data import AlignError
from training.iro.export import discard_states, export_rollouts
from training.iro.loop import Alignment
from training.iro.rollouts import COMPLETIONS, HEAD_STATES
from training.run import Cancelled


@pytest.fixture(autouse=True)
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda path: Digits())


def write_rows(config: AlignConfig, rows: list[dict[str, Any]]) -> None:
    config.training_file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_prompts_completions_and_rewards_of_every_graded_rollout(config: AlignConfig, tmp_path: Path) -> None:
    fields = [{"tag": "x"}, {"tag": 3}, {"reward": "mine"}, {}]
    rows = [{"prompt": f"{n:06b}"} | fields[n % 4] for n in range(40)]
    write_rows(config, rows)
    result = job().execute(config, tmp_path / "run")
    rollouts = export_rollouts(tmp_path / "run")
    assert rollouts.column_names == ["prompt", "completion", "tag", "reward", "iteration", "tilted", "heldout", "row"]
    for row in rollouts:
        assert row["prompt"] == rows[row["row"]]["prompt"]
        assert row["reward"] == row["completion"].count("1")
        tag = rows[row["row"]].get("tag")
        assert row["tag"] == (None if tag is None else json.dumps(tag))  # of mixed types: JSON
    for step in (1, 2):
        rewards = [row["reward"] for row in rollouts if row["iteration"] == step]
        assert sum(rewards) / len(rewards) == pytest.approx(result["history"][step - 1]["train_mean_reward"])
    assert 0 < sum(rollouts["heldout"]) < len(rollouts) / 3
    assert not any(rollouts["tilted"])


def test_rollouts_of_a_tilt_are_told_from_those_before_it(config: AlignConfig, tmp_path: Path) -> None:
    write_rows(config, [{"prompt": f"{n:06b}"} for n in range(40)])
    job().execute(config, tmp_path / "run")
    untilted = len(export_rollouts(tmp_path / "run"))
    plain, *of_rounds = (Alignment.shard_names(1, "train", 0, tilt_round).rollouts for tilt_round in range(4))
    shard = plain.removesuffix("rollouts")
    for path in (tmp_path / "run/checkpoints").glob(f"{shard}*"):
        for name in of_rounds:
            shutil.copy(path, path.with_name(path.name.replace(shard, name.removesuffix("rollouts"))))
    rollouts = export_rollouts(tmp_path / "run")
    tilted = rollouts.filter(lambda row: row["tilted"])
    assert len(rollouts) == untilted + len(tilted) and set(tilted["iteration"]) == {1}
    trained = {(row["row"], row["completion"]) for row in rollouts if not row["tilted"] and not row["heldout"]}
    copied = Counter((row["row"], row["completion"]) for row in tilted)
    assert copied.keys() <= trained and all(count % 3 == 0 for count in copied.values()) and copied


class Chats(Digits):
    chat_template = "toy"
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    all_special_tokens = all_special_ids = ()

    def apply_chat_template(self, messages: Any, **_: Any) -> list[int]:
        return [int(c) for c in messages[-1]["content"]]


def test_conversations_are_exported_as_conversations(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.training.iro.toy_job.Toy.tokenizer", Chats())
    parts = [{"type": "text", "text": "01"}, {"type": "text", "text": "10"}]
    write_rows(
        config,
        [{"messages": [{"role": "user", "content": parts}]}] * 4
        + [{"messages": [{"role": "user", "content": f"{n:06b}"}]} for n in range(36)],
    )
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "run")
    for row in export_rollouts(tmp_path / "run"):
        (message,) = row["completion"]
        assert message["role"] == "assistant" and message["content"].count("1") == row["reward"]
        assert [m["role"] for m in row["prompt"]] == ["user"]
        assert row["row"] >= 4 or row["prompt"][0]["content"] == "0110"


class ToolChats(Chats):
    def get_chat_template(self, tools: object = None) -> str:
        return "{{ tools }}"


def test_tool_calls_and_tools_are_exported(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that Arrow could not tell apart: each schema would get the arguments of all."""
    monkeypatch.setattr("tests.training.iro.toy_job.Toy.tokenizer", ToolChats())
    function = {"name": "look_up", "arguments": '{"city": "Bonn"}'}
    calls = [{"id": "call-1", "type": "function", "function": function}]
    of_object = [{**calls[0], "function": {"name": "count", "arguments": {"n": 1}}}]
    tools = [
        [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}]
        for name, properties in (("look_up", {"city": {"type": "string"}}), ("count", {"n": {"type": ["integer"]}}))
    ]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "10"},
                {"role": "assistant", "tool_calls": (calls, of_object)[n % 2]} | ({"content": None} if n < 20 else {}),
                {"role": "tool", "tool_call_id": "call-1", "content": f"{n:06b}"},
            ],
            "tools": tools[n % 2],
        }
        for n in range(40)
    ]
    write_rows(config, rows)
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "run")
    for row in export_rollouts(tmp_path / "run"):
        asked, call, answer = row["prompt"]
        number = row["row"]
        assert json.loads(row["tools"]) == tools[number % 2]
        assert (asked["content"], asked["tool_calls"]) == ("10", None)
        assert (call["content"], call["tool_calls"][0]["id"]) == ("", "call-1")
        expected = (function, {"name": "count", "arguments": '{"n": 1}'})[number % 2]
        assert call["tool_calls"][0]["function"] == expected
        assert (answer["tool_call_id"], answer["content"]) == ("call-1", f"{number:06b}")


def test_rows_of_two_kinds_are_refused(config: AlignConfig, tmp_path: Path) -> None:
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "run")
    write_rows(config, [{"prompt": "0"}, {"messages": []}])
    header = json.loads((tmp_path / "run/config.json").read_text())
    header["inputs"]["training_file"] = hashlib.sha256(config.training_file.read_bytes()).hexdigest()
    (tmp_path / "run/config.json").write_text(json.dumps(header))
    with pytest.raises(AlignError, match="one table cannot hold"):
        export_rollouts(tmp_path / "run")


def test_rollouts_whose_training_file_is_gone_are_refused(config: AlignConfig, tmp_path: Path) -> None:
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "run")
    config.training_file.unlink()
    with pytest.raises(AlignError, match="is there no more"):
        export_rollouts(tmp_path / "run")


@pytest.mark.parametrize("count", [40, 1])
def test_rollouts_whose_training_file_has_changed_are_refused(count: int, config: AlignConfig, tmp_path: Path) -> None:
    """Whose prompts would be others than those that were completed."""
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "run")
    write_rows(config, [{"prompt": f"{n:06b}"} for n in reversed(range(count))])
    with pytest.raises(AlignError, match=r"the training file .*train\.jsonl has changed since the run; restore it"):
        export_rollouts(tmp_path / "run")


@pytest.mark.parametrize("place", ["run/train.jsonl", "train.jsonl"])  # of a data set, of a job of a server
def test_a_run_that_was_moved_with_its_training_file_is_exported(
    place: str, config: AlignConfig, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "run").mkdir(parents=True)
    training_file = config.training_file.rename(old / place)
    one_step = config.model_copy(update={"iterations": 1, "training_file": training_file})
    job().execute(one_step, old / "run")
    rows = export_rollouts(old / "run").to_list()
    shutil.copytree(old, new)
    training_file.write_text('{"prompt": "0"}\n')
    assert export_rollouts(new / "run").to_list() == rows
    shutil.rmtree(old)
    assert export_rollouts(new / "run").to_list() == rows


def test_a_run_without_a_model_folder_is_read_with_the_default_model(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `iro run align` writes it: ``model_dir`` is null."""
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "run")
    header = json.loads((tmp_path / "run/config.json").read_text())
    header["config"]["model_dir"] = None
    (tmp_path / "run/config.json").write_text(json.dumps(header))
    read: list[Path] = []
    monkeypatch.setattr("training.iro.export.prepare_model", lambda: tmp_path / "default")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda path: read.append(Path(path)) or Digits())
    assert len(export_rollouts(tmp_path / "run")) > 0 and read == [tmp_path / "default"]


def test_integers_of_more_than_64_bits_are_exported_as_json(config: AlignConfig, tmp_path: Path) -> None:
    write_rows(config, [{"prompt": f"{n:06b}", "hash": n * 2**70} for n in range(40)])
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "run")
    rollouts = export_rollouts(tmp_path / "run")
    assert [json.loads(text) for text in rollouts["hash"]] == [n * 2**70 for n in rollouts["row"]]


def test_the_command_writes_each_format_once(config: AlignConfig, tmp_path: Path) -> None:
    ids = [{}, {"id": 2**53 + 1}]
    write_rows(config, [{"prompt": f"{n:06b}", "weight": n / 7e6} | ids[n % 2] for n in range(40)])
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "server/jobs/ftjob-1/run")
    run_iro = CliRunner().invoke
    options = ["rollouts", "export", "ftjob-1", "--data-dir", str(tmp_path / "server")]
    folder = run_iro(app, [*options, "--out", str(tmp_path / "arrow")])
    assert folder.exit_code == 0, folder.stderr
    rollouts = load_from_disk(str(tmp_path / "arrow"))
    assert len(rollouts) > 0 and folder.stdout.startswith(f"{len(rollouts)} completions: ")
    by_folder = ["rollouts", "export", str(tmp_path / "server/jobs/ftjob-1/run")]
    assert run_iro(app, [*by_folder, "--format", "jsonl", "--out", str(tmp_path / "r.jsonl")]).exit_code == 0
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rollouts.to_list()
    assert run_iro(app, [*by_folder, "--format", "jsonl", "--out", str(tmp_path / "r.jsonl.gz")]).exit_code == 0
    assert gzip.decompress((tmp_path / "r.jsonl.gz").read_bytes()).decode().splitlines() == lines
    again = run_iro(app, [*by_folder, "--out", str(tmp_path / "arrow")])
    assert (again.exit_code, again.stderr) == (2, f"Error: {tmp_path / 'arrow'} exists\n")
    missing = run_iro(app, ["rollouts", "export", "ftjob-2", "--out", str(tmp_path / "x"), *options[3:]])
    assert missing.exit_code == 2 and "ftjob-2: neither" in missing.stderr


def test_states_of_a_run_that_will_not_go_on_are_removed(config: AlignConfig, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        job().execute(config, tmp_path / "run", should_stop=lambda: (tmp_path / "run/checkpoints/scale.pt").exists())
    assert list((tmp_path / "run/checkpoints").glob("*.prefixes.arrow"))
    (tmp_path / f"run/checkpoints/1-train-0-rollouts.{HEAD_STATES}.arrow").touch()  # of a job that fits tilts
    discard_states(tmp_path / "run")
    tables = {path.name.split(".")[1] for path in (tmp_path / "run/checkpoints").glob("*.arrow")}
    assert tables == {COMPLETIONS}
    assert len(export_rollouts(tmp_path / "run")) > 0
