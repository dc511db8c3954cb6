"""The command line as a user meets it: commands run in processes of their own, or through Typer's runner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from iro_server.alignment.definition import AlignmentOptions
from iro_server.cli.demo import DemoError, MissingPackage
from iro_server.cli.generate import parse_values
from iro_server.cli.main import app
from iro_server.cli.model import model_name
from iro_server.cli.options import read_grader
from iro_server.engines.prepare import prepare_model
from iro_server.settings import Settings
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for, upload
from training.iro.config import AlignConfig
from training.run import Job, JobConfig, Run


def iro(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_help_comes_without_loading_a_model_library() -> None:
    code = "import sys; from iro_server.cli.main import app\n"
    code += "try: app(['--help'])\nfinally: sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("serve", "align", "generate", "list", "run", "demo", "model"):
        assert command in done.stdout


def test_a_server_in_front_of_vllm_imports_no_code_of_models() -> None:
    code = "import sys, iro_server.api.app, iro_server.engines.vllm\n"
    code += "print({'transformers.modeling_utils', 'torch._dynamo', 'peft'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_list_names_the_installed_jobs_and_their_presets() -> None:
    listed = iro("list")
    assert listed.exit_code == 0
    assert "align" in listed.stdout and "smoke" in listed.stdout and "paper" in listed.stdout


@pytest.mark.parametrize(("preset", "status"), [("smoke", 1), ("paper", 0)])
def test_a_check_that_does_not_hold_fails_a_smoke_run_and_is_a_finding_elsewhere(
    preset: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: JobConfig, run: Run) -> dict[str, Any]:
        run.check("claim", expected=1, got=2, holds=False)
        return {}

    job = Job("claims", "", JobConfig, run, presets={"smoke": {}, "paper": {}})
    monkeypatch.setattr("iro_server.cli.main.load_batch_job", lambda name: job)
    done = iro("run", "claims", "--preset", preset, "--out", str(tmp_path / "run"))
    assert done.exit_code == status and "✗ claim: 2 (1)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nope"), "no job 'nope'; `iro list` has: align"),
        (("run", "align", "--preset", "huge"), "no preset 'huge', only: smoke, paper"),
        (("run", "align", "iterations"), "'iterations' is not of the form key=value"),
        (("run", "align", "iterations=0"), "iterations: Input should be greater than or equal to 1"),
        (("run", "align", "iteration=3"), "iteration: no such field; did you mean iterations?"),
        (("run", "theory.gradient_flow", "--preset", "smoke", "xyzzy=3"), "xyzzy: not one of seed, "),
        (("align", "--dataset", "grader.json", "grader.json"), "give it as TRAIN, without --dataset"),
        (("generate", "Hello", "--beam-width", "-1"), "beam_width: Input should be greater than or equal to 1"),
        (("generate", "Hello", "--betas", "1,2"), "betas weigh the value functions of one bundle"),
        (
            ("serve", "--engine-url", "10.0.0.1"),
            "'10.0.0.1' is not the base URL of an engine",
        ),
        (("align", "missing.jsonl", "grader.json"), "missing.jsonl: no such file"),
        (("model", "info", "nobody/no-such-model"), "no-such-model"),
        (("model", "info", "."), "no *.safetensors in it"),
        (("generate", "Hello", "--model", "."), "no *.safetensors in it"),
        (("generate", "caf\udce9"), "the prompt is not UTF-8"),
        (("export", "run", "--out", "adapter", "--entries", "5"), "peft has no entries"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "grader.json").write_text("{}")
    done = iro(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "status"), [(MissingPackage("reviews is not installed"), 2), (DemoError("the job failed"), 1)]
)
def test_a_demo_that_cannot_go_on_is_one_line(
    error: Exception, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(out: Path, size: object) -> None:
        raise error

    monkeypatch.setattr("iro_server.cli.demo.run.run_demo", fail)
    done = iro("demo", "--out", str(tmp_path))
    assert (done.exit_code, done.stderr) == (status, f"Error: {error}\n")


def test_a_backup_of_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "here")
    with serving(settings, ByteEngine()) as client:
        file = upload(client)
    (settings.files_dir / file).write_bytes(b"other bytes")
    refused = iro("backup", str(tmp_path / "backup"), "--data-dir", str(settings.data_dir))
    assert (refused.exit_code, refused.stderr) == (1, f"Error: {file} is not what was stored\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_grader_in_python_is_read_as_utf_8(encoding: str, tmp_path: Path) -> None:
    source = "def grade(sample, item): return float('é' in sample['output_text'])\n"
    (tmp_path / "grader.py").write_text(source, encoding=encoding)
    assert read_grader(tmp_path / "grader.py")["source"] == source


def test_a_grader_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "grader.py").write_bytes("# é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"grader\.py: not UTF-8: "):
        read_grader(tmp_path / "grader.py")


def test_the_installed_command_ends_with_status_2_and_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "iro_server", "run", "nope"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_ends_the_command_without_a_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "iro_server", "list"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_setting_that_is_nearly_one_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IRO_JOB_CONCURENCY", "2")
    monkeypatch.setenv("IRO_KEY", "k")  # of the command line, and no setting
    result = iro("health", "--port", "1", "--data-dir", str(tmp_path))
    warnings = [line for line in result.stderr.splitlines() if line.startswith("Warning")]
    assert warnings == [
        "Warning: IRO_JOB_CONCURENCY is no setting and has no effect; did you mean IRO_JOB_CONCURRENCY?"
    ]


def test_align_names_the_line_that_is_no_row(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "Once"}\n{"prompt": 3}\n')
    (tmp_path / "grader.py").write_text("def grade(sample, item): return 1.0\n")
    failed = iro("align", str(train), str(tmp_path / "grader.py"), "--out", str(tmp_path / "run"))
    assert failed.exit_code == 2
    assert "train.jsonl, line 2" in failed.stderr


def test_align_has_the_options_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[dict[str, Any]] = []

    def record(config: AlignConfig, run: Run) -> dict[str, Any]:
        configs.append(config.model_dump(exclude_unset=True))
        return {"best_checkpoint": "run/iterations/1", "best_iteration": 1, "improved": False}

    monkeypatch.setattr("iro_server.cli.main.load_batch_job", lambda name: Job(name, "", AlignConfig, record))
    monkeypatch.setattr("iro_server.cli.main.model_dir", lambda model: tmp_path)
    train, grader = tmp_path / "train.jsonl", tmp_path / "grader.py"
    train.write_text('{"prompt": "Once"}\n')
    grader.write_text("def grade(sample, item): return 1.0\n")
    options = ("--beam-width", "3", "--betas", "1,0.5", "--max-tokens", "auto", "--no-early-stop", "selection=top")
    done = iro("align", str(train), str(grader), "--out", str(tmp_path / "run"), *options)
    assert "is not above 0" in done.stdout and done.exit_code == 0, done.output
    options_set = configs[0].keys() & AlignmentOptions.model_fields.keys()
    assert {name: configs[0][name] for name in options_set} == {
        "beam_width": 3,
        "betas": [1.0, 0.5],
        "iterations": 2,
        "max_tokens": "auto",
        "early_stop": False,
        "selection": "top",
    }
    for betas in ("0.5", "[0.5]"):
        arguments = ("align", str(train), str(grader), "--out", str(tmp_path / betas), "--betas", betas)
        assert iro(*arguments).exit_code == 0 and configs.pop()["betas"] == [0.5]
    (tmp_path / "grader.json").write_text('{"type": "oracle"}')
    refused = iro("align", str(train), str(tmp_path / "grader.json"), "--out", str(tmp_path / "other"))
    assert (refused.exit_code, len(configs)) == (2, 1) and "no grader of type 'oracle'" in refused.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("model", [".", "./", "../toy", "../toy/", "{parent}/toy", "below/..", "{parent}/link"])
def test_a_model_folder_is_served_by_its_name(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("toy")
    monkeypatch.chdir(tmp_path / "toy")
    served: list[tuple[Path | None, str]] = []

    def record(settings: Settings) -> None:
        served.append((settings.model_dir, settings.model_name))

    monkeypatch.setattr("iro_server.api.app.serve", record)
    done = iro("serve", "--port", "0", "--data-dir", str(tmp_path), "--model", model.format(parent=tmp_path))
    assert done.exit_code == 0, done.output
    assert served == [(tmp_path / "toy", "link" if model.endswith("link") else "toy")]


@pytest.mark.parametrize("name", ["SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M/"])
def test_a_model_of_the_hub_is_served_by_the_last_part_of_its_name(name: str) -> None:
    assert model_name(name) == "SmolLM2-135M"


def test_help_of_align_describes_the_options() -> None:
    shown = " ".join(iro("align", "--help").stdout.replace("│", " ").split())
    assert "--num-successors" in shown and "K: continuations of each beam" in shown and "default 8" in shown


@pytest.mark.slow(52)
def test_align_then_generate(tmp_path: Path) -> None:
    """The smallest whole job on the real model: more letters e, and a bundle that steers a completion."""
    train = tmp_path / "train.jsonl"
    openings = ["The film", "I saw", "This was", "We went", "She said", "There is", "He came", "It began", "Once", "At"]
    train.write_text("".join(json.dumps({"prompt": opening}) + "\n" for opening in openings))
    grader = tmp_path / "grader.py"
    grader.write_text("def grade(sample, item): return sample['output_text'].count('e')\n")
    out = tmp_path / "run"
    options = (
        "iterations=1",
        "max_tokens=6",
        "counted_tokens=0",
        "rollouts_per_prompt=8",
        "validation_prompts=2",
        "chunk_length=2",
    )
    aligned = iro("align", str(train), str(grader), "--out", str(out), *options)
    assert aligned.exit_code == 0, aligned.output
    assert "Step 1/1, train mean reward=" in aligned.stdout
    assert json.loads((out / "result.json").read_text())["history"][0]["step"] == 1
    assert {path.name for path in (out / "figures").iterdir()} == {"reward.png", "correlation.png"}
    arguments = ("generate", "The film", "--text", "--max-tokens", "6", "--seed", "1")
    steered = iro(*arguments, "--values", str(out / "iterations" / "1"), "--chunk-length", "2")
    assert steered.exit_code == 0, steered.output
    assert steered.stdout.strip()
    assert steered.stdout == iro(*arguments, "--values", str(out / "iterations" / "1"), "--chunk-length", "2").stdout
    bundle, copied = out / "iterations" / "1", tmp_path / "copied"
    shutil.copytree(bundle, copied)
    mixed = iro(*arguments, "--values", f"{bundle}=1.5,{copied}=-0.5", "--chunk-length", "2")
    assert (mixed.exit_code, mixed.stdout) == (0, steered.stdout), mixed.output  # the same values, 1.5 - 0.5 times


@pytest.mark.parametrize("narrow", [("--top-p", "0"), ("--temperature", "1e-40")])
def test_a_top_p_of_0_and_a_tiny_temperature_keep_the_likeliest_token_alone(narrow: Sequence[str]) -> None:
    greedy, narrowed = (iro("generate", "Hello", "--max-tokens", "4", *of) for of in (("--temperature", "0"), narrow))
    assert narrowed.exit_code == 0 and narrowed.stdout == greedy.stdout and greedy.stdout.strip()


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        (("serve", "--port", "0"), "IRO_ENGINE_URLS"),
        (("keys", "list"), "IRO_GRADER_ENDPOINTS"),
        (("graders",), "IRO_PYTHON_LIMITS"),
    ],
)
def test_a_variable_that_is_no_json_is_named(
    command: Sequence[str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IRO_GRADER_SERVICE_KEY", "sixteen letters.")
    monkeypatch.setenv(variable, "http://127.0.0.1:8001/v1")
    done = iro(*command)
    assert done.exit_code == 2 and done.stderr.startswith(f"Error: {variable} is not JSON")
    assert done.stderr.count("\n") == 1 and "a list as" in done.stderr


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    done = iro("generate", "Hello", "--seed", str(seed))
    assert done.exit_code == 2 and "--seed" in done.stderr


def test_values_are_a_bundle_or_several_with_weights(tmp_path: Path) -> None:
    odd = tmp_path / "a=1"
    odd.mkdir()
    assert parse_values(str(odd)) == {odd: 1.0}
    assert parse_values("here/b=-0.5,c=2") == {Path("here/b"): -0.5, Path("c"): 2.0}
    for wrong in ("b=much", "b=1,c", "=1", "b=nan", "b=inf"):
        with pytest.raises(ValueError, match="is not PATH=WEIGHT"):
            parse_values(wrong)
    for twice in ("b=1,b=1", "b/=1,c=2,b=-0.5"):
        with pytest.raises(ValueError, match="--values: b stands twice"):
            parse_values(twice)


def test_model_info_gives_the_hash_values_are_tied_to() -> None:
    known = json.loads((prepare_model() / "iro.json").read_text())
    assert known["sha256"] in iro("model", "info").stdout


def test_model_verify_reads_the_weights_again(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4)}, tmp_path / "model.safetensors")
    digest = iro("model", "verify", str(tmp_path)).stdout.split()[0]
    (tmp_path / "iro.json").write_text(json.dumps({"sha256": digest}))
    assert iro("model", "verify", str(tmp_path)).exit_code == 0
    save_file({"w": torch.zeros(4)}, tmp_path / "model.safetensors")
    changed = iro("model", "verify", str(tmp_path))
    assert changed.exit_code == 2 and "changed" in changed.stderr


def test_an_estimate_waits_for_a_server_that_has_no_time_or_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = {"verdict": "constant_reward", "message": "The reward is always 0.", "reward": {"mean": None}}
    result |= {"prompts": 1, "completions": 8, "ungradable_share": 0.0, "all_equal_share": 1.0, "samples": []}
    result |= {"cost": {"base_tokens": 9, "grader_calls": 8, "seconds": 1, "disk_bytes": 0}}
    result |= {"grader": {"seconds_per_call": 0.1}}
    polls = [
        httpx.Response(200, json={"id": "est-1", "status": "in_progress"}),
        httpx.Response(429, headers={"retry-after": "2"}, json={"error": {"message": "Rate limit reached"}}),
        httpx.Response(503),
        None,
        httpx.Response(200, json={"id": "est-1", "status": "succeeded", "result": result}),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/estimate/est-1"):
            poll = polls.pop(0)
            if poll is None:
                raise httpx.ConnectError("[Errno 111] Connection refused")
            return poll
        return httpx.Response(200, json={"id": "est-1", "status": "queued", "data": [{"id": "m"}]})

    @contextmanager
    def client(url: str, key: str) -> Iterator[httpx.Client]:
        yield httpx.Client(transport=httpx.MockTransport(answer), base_url=url)

    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=lambda: sum(pauses))
    monkeypatch.setattr("iro_server.cli.estimate.server_client", client)
    for module in ("estimate", "http"):
        monkeypatch.setattr(f"iro_server.cli.{module}.time", clock)
    (tmp_path / "train.jsonl").write_text('{"prompt": "A"}\n')
    (tmp_path / "grader.py").write_text("def grade(sample, item):\n    return 0\n")
    done = iro("estimate", str(tmp_path / "train.jsonl"), str(tmp_path / "grader.py"))
    assert done.exit_code == 1 and done.stdout.startswith("constant_reward: The reward is always 0."), done.output
    assert not polls and pauses == [3.0, 3.0, 2.0, 1.0, 1.0]
