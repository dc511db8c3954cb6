"""``iro export``: the tilt of a bundle, loaded by the libraries that it is written for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from iro_server import JsonObject
from iro_server.engines.describe import Description
from iro_server.engines.output_head import read_output_head
from iro_server.engines.prepare import prepare_model
from iro_server.engines.vllm_server import MAX_RANK
from tests.iro_server.test_cli import iro
from value_heads import FeatureSpec, LinearHead, ValueStack, save_bundle
from value_heads.length_features import NUM_LENGTH_FEATURES
from value_heads.prompt_features import FEATURES
from value_heads.tilt import Tilt, sharpened, zero_tilt
from value_heads.tilt_export import head_adapter

STOP_IDS = (2,)
LOADS_WITH_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model_dir, adapter, ids, out = sys.argv[1:]
base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter).eval()
with torch.no_grad():
    torch.save(model(torch.load(ids)).logits[0].log_softmax(-1), out)
"""


@pytest.fixture(scope="module")
def model_dir() -> Path:
    return prepare_model()


@pytest.fixture(scope="module")
def head_VD(model_dir: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    weight: torch.Tensor = model.get_output_embeddings().weight.detach()
    return weight


@pytest.fixture(scope="module")
def tilt(head_VD: torch.Tensor) -> Tilt:
    vocabulary, width = head_VD.shape
    generator = torch.Generator().manual_seed(0)
    gates = torch.zeros(len(FEATURES), width + 1)
    gates[FEATURES.index("stop")] = torch.randn(width + 1, generator=generator) * 0.01
    return replace(
        zero_tilt(vocabulary, width, (), STOP_IDS),
        bias=torch.randn(vocabulary, generator=generator) * 0.3,
        state_factor=torch.randn(8, width + 1, generator=generator) * 0.02,
        token_factor=torch.randn(8, width, generator=generator) * 0.2,
        gates=gates,
    )


def saved(folder: Path, tilt: Tilt | None, model_dir: Path) -> str:
    info = Description.of_directory(model_dir).info
    spec = FeatureSpec(summed=(0,), position=False)
    stack = ValueStack([LinearHead(spec, torch.zeros(spec.width(info.hidden_size)), 0.0)], [1.0], tilt)
    save_bundle(folder, stack, model_hash=info.model_hash, template_hash=info.template_hash)
    return str(folder)


@pytest.mark.slow(8)
def test_peft_loads_the_adapter_and_draws_as_the_tilt_does(
    tmp_path: Path, tilt: Tilt, head_VD: torch.Tensor, model_dir: Path
) -> None:
    bundle = saved(tmp_path / "bundle", tilt, model_dir)
    done = iro("export", bundle, "--out", str(tmp_path / "adapter"))
    assert done.exit_code == 0, done.output
    ids = AutoTokenizer.from_pretrained(model_dir)("A walk along the shore of the lake", return_tensors="pt").input_ids
    torch.save(ids, tmp_path / "ids.pt")
    files = [str(tmp_path / name) for name in ("adapter", "ids.pt", "logprobs.pt")]
    subprocess.run([sys.executable, "-c", LOADS_WITH_PEFT, str(model_dir), *files], check=True)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        states = model.model(ids).last_hidden_state[0]
    with_one = torch.cat([states, torch.ones(len(states), 1)], 1)
    added = tilt.bias + (with_one @ tilt.state_factor.T) @ (tilt.token_factor @ head_VD.T)
    added[:, list(STOP_IDS)] += with_one @ tilt.gates[FEATURES.index("stop")][:, None]
    expected = (states @ head_VD.T + added).log_softmax(-1)
    torch.testing.assert_close(torch.load(tmp_path / "logprobs.pt"), expected, atol=1e-4, rtol=1e-4)


def test_logit_bias_has_the_strongest_tokens(tmp_path: Path, tilt: Tilt, model_dir: Path) -> None:
    bias = torch.zeros_like(tilt.bias)
    bias[[7, 11]] = torch.tensor([2.0, -3.0])
    only_bias = replace(tilt, bias=bias, state_factor=tilt.state_factor[:0], token_factor=tilt.token_factor[:0])
    only_bias = replace(only_bias, gates=torch.zeros_like(tilt.gates))
    bundle, out = saved(tmp_path / "bundle", only_bias, model_dir), tmp_path / "bias.json"
    done = iro("export", bundle, "--format", "logit_bias", "--out", str(out))
    assert done.stdout == f"2 of 2 entries (100% of the bias's squares)\n{out}\n"
    assert json.loads(out.read_text()) == {"7": 2.0, "11": -3.0}
    out.unlink()
    done = iro("export", bundle, "--format", "logit_bias", "--entries", "1", "--out", str(out))
    assert done.stdout.startswith("1 of 2 entries (69% of the bias's squares)\n")  # 9 of 13
    assert json.loads(out.read_text()) == {"11": -3.0}


def test_what_logit_bias_leaves_out_is_printed(tmp_path: Path, tilt: Tilt, model_dir: Path) -> None:
    """And is in no entry: the factors' constants are what makes them 0 at the mean state."""
    bundle, out = saved(tmp_path / "bundle", tilt, model_dir), tmp_path / "bias.json"
    done = iro("export", bundle, "--format", "logit_bias", "--out", str(out))
    count = f"300 of {len(tilt.bias) - 1:,} entries"  # one is the median, which is 0
    assert done.stdout.startswith(count)
    left_out = (
        "the part that reads the model's state is left out, which adds 0 at the mean state but for the stop tokens"
    )
    assert done.stdout.splitlines()[0].endswith(f"; {left_out}")
    static = tilt.bias - tilt.bias.median()
    assert json.loads(out.read_text()) == {
        str(token): pytest.approx(float(static[token])) for token in static.abs().topk(300).indices.tolist()
    }


def test_a_tilt_without_a_bias_is_no_logit_bias(tmp_path: Path, tilt: Tilt, model_dir: Path) -> None:
    zero = zero_tilt(len(tilt.bias), tilt.token_factor.shape[1], (), STOP_IDS)
    bundle, out = saved(tmp_path / "bundle", zero, model_dir), tmp_path / "bias.json"
    assert "the tilt's bias has no entries" in refused(bundle, "--format", "logit_bias", "--out", str(out))
    assert not out.exists()


def ended_run(folder: Path, best: str, **config: float) -> str:
    """The folder of a run that has shown no gain."""
    result = {"job": "align", "best_checkpoint": best, "best_iteration": 1, "improved": False, "config": config}
    (folder / "result.json").write_text(json.dumps(result))
    return str(folder)


@pytest.mark.parametrize("command", [("export",), ("rollouts", "export")], ids=" ".join)
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"config.json": {"job": "theory.cot"}}, "is a run of theory.cot, not of align"),
        ({"result.json": {"job": "theory.cot"}}, "is a run of theory.cot, not of align"),
        ({"config.json": {"job": "align.logit_bias"}}, "is a run of align.logit_bias, not of align"),
        ({"seed-3/config.json": {"job": "theory.cot"}}, "is a run of theory.cot, not of align"),
        ({"seed-0/config.json": {"job": "align"}}, "is a run of several seeds; name the folder of one: {run}/seed-…"),
        (
            {"result.json": {"job": "align", "per_seed": []}},
            "is a run of several seeds; name the folder of one: {run}/seed-…",
        ),
        ({"config.json": {"architectures": ["LlamaForCausalLM"]}}, "is no run of align"),
    ],
)
def test_a_run_that_has_no_tilt_or_several_is_one_line(
    command: Sequence[str], files: dict[str, JsonObject], reason: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for name, content in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps(content))
    refused = iro(*command, str(run), "--out", str(tmp_path / "out"))
    assert (refused.exit_code, refused.stderr) == (2, f"Error: {run} {reason.format(run=run)}\n")


def test_a_run_folder_that_was_copied_exports_its_own_bundle(tmp_path: Path, tilt: Tilt, model_dir: Path) -> None:
    bias = torch.zeros_like(tilt.bias)
    bias[7] = 2.0
    zero = zero_tilt(len(bias), tilt.token_factor.shape[1], (), STOP_IDS)
    other = saved(tmp_path / "old/iterations/1", replace(zero, bias=bias * 2), model_dir)
    saved(tmp_path / "new/iterations/1", replace(zero, bias=bias), model_dir)
    run, out = ended_run(tmp_path / "new", other), tmp_path / "bias.json"
    assert iro("export", run, "--format", "logit_bias", "--out", str(out)).exit_code == 0
    assert json.loads(out.read_text()) == {"7": 2.0}


@pytest.mark.parametrize(("keep_unproven", "warnings"), [(False, 1), (True, 0)])
def test_a_tilt_that_its_server_does_not_serve_is_warned_of(
    keep_unproven: bool, warnings: int, tmp_path: Path, tilt: Tilt, model_dir: Path
) -> None:
    bundle = saved(tmp_path / "run/iterations/1", tilt, model_dir)
    run = ended_run(tmp_path / "run", bundle, keep_unproven=keep_unproven)
    done = iro("export", run, "--format", "logit_bias", "--out", str(tmp_path / "bias.json"))
    assert done.exit_code == 0 and done.stderr.count("\n") == warnings
    assert done.stderr.startswith("Warning: the 95 % interval of the job's gain is not above 0" * warnings)


def test_what_sharpens_the_model_is_told_as_a_temperature(tmp_path: Path, tilt: Tilt, model_dir: Path) -> None:
    """Which the numbers of the file are for: they are those of the tilt before it was sharpened."""
    bias = torch.zeros_like(tilt.bias)
    bias[[7, 11]] = torch.tensor([2.0, -3.0])
    zero = zero_tilt(len(bias), tilt.token_factor.shape[1], (), STOP_IDS)
    bundle = saved(tmp_path / "bundle", sharpened(replace(zero, bias=bias), 1.0), model_dir)
    out = tmp_path / "bias.json"
    done = iro("export", bundle, "--format", "logit_bias", "--out", str(out))
    assert json.loads(out.read_text()) == {"7": 2.0, "11": -3.0}
    assert "Sample at a temperature of 0.5 times the job's" in done.output


@pytest.mark.parametrize(
    ("sharpness", "temperature", "told"),
    [(2.0, 0.7, "0.2333: the tilt sharpens"), (0.0, 0.7, "0.7: it was fitted"), (1.0, 2.0, None), (0.0, 1.0, None)],
)
def test_the_temperature_that_a_job_sampled_at_is_told_with_its_tilt(
    sharpness: float, temperature: float, told: str | None, tmp_path: Path, tilt: Tilt, model_dir: Path
) -> None:
    """q is exp((logits + A) / T) with the job's T."""
    bundle = saved(tmp_path / "run/iterations/1", sharpened(tilt, sharpness), model_dir)
    run = ended_run(tmp_path / "run", bundle, temperature=temperature)
    done = iro("export", run, "--format", "logit_bias", "--out", str(tmp_path / "bias.json"))
    assert done.exit_code == 0 and ("Sample at" in done.stdout) == (told is not None)
    assert told is None or f"Sample at a temperature of {told}" in done.stdout


def test_generate_applies_the_tilt_and_explains_it(tmp_path: Path, tilt: Tilt, model_dir: Path) -> None:
    bias = torch.zeros_like(tilt.bias)
    bias[1024] = 40.0
    bundle = saved(tmp_path / "bundle", replace(tilt, bias=bias), model_dir)
    arguments = ("generate", "The film", "--text", "--max-tokens", "3", "--seed", "1", "--values", bundle)
    word = AutoTokenizer.from_pretrained(model_dir).decode([1024])
    assert iro(*arguments).stdout.strip() == (word * 3).strip()
    assert iro(*arguments, "--strength", "0").stdout.strip() != (word * 3).strip()
    explained = iro(*arguments, "--explain").stdout
    assert "value" in explained and "tilt" in explained and word.strip() in explained
    assert iro("generate", "The film", "--explain").exit_code == 2


def refused(*arguments: str) -> str:
    done = iro("export", *arguments)
    assert done.exit_code == 2
    return done.output


def test_what_no_adapter_holds_is_refused(tmp_path: Path, tilt: Tilt, model_dir: Path) -> None:
    plain = saved(tmp_path / "plain", None, model_dir)
    assert "has no tilt" in refused(plain, "--out", str(tmp_path / "out"))
    words = saved(tmp_path / "words", replace(tilt, gates=torch.ones_like(tilt.gates)), model_dir)
    assert "--without-words" in refused(words, "--out", str(tmp_path / "out"))
    assert iro("export", words, "--without-words", "--out", str(tmp_path / "out")).exit_code == 0
    lengths = replace(
        tilt, length_factor=torch.ones(8, NUM_LENGTH_FEATURES), length_stop=torch.ones(NUM_LENGTH_FEATURES)
    )
    counting = saved(tmp_path / "lengths", lengths, model_dir)
    assert "length, which no adapter holds" in " ".join(refused(counting, "--out", str(tmp_path / "l")).split())
    assert "exists" in refused(words, "--out", str(tmp_path / "out"))
    assert "earlier format" in refused(words, "--without-words", "--format", "vllm", "--out", str(tmp_path / "v"))
    assert "neither a value bundle" in refused(str(tmp_path), "--out", str(tmp_path / "v"))


@pytest.fixture(scope="module")
def two_rounds(tilt: Tilt, head_VD: torch.Tensor) -> Tilt:
    """Of 32 factors whose rows are orthogonal, of which the last add least; with stop gate and bias 34 ranks."""
    width = head_VD.shape[1]
    generator = torch.Generator().manual_seed(1)
    rows_Dr = torch.linalg.qr(torch.randn(width, 33, generator=generator)).Q
    sizes_r1 = torch.linspace(0.2, 0.01, 32)[:, None]
    gates = torch.zeros_like(tilt.gates)
    gates[FEATURES.index("stop"), :-1] = rows_Dr[:, 32]
    return replace(
        tilt,
        state_factor=torch.cat([sizes_r1 * rows_Dr[:, :32].T, torch.randn(32, 1, generator=generator)], 1),
        token_factor=torch.randn(32, width, generator=generator),
        gates=gates,
        direction=torch.full((width,), 0.01),
        direction_error=torch.tensor(0.25),
    )


def exported(bundle: str, out: Path, *arguments: str) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """What is printed before the folder's name, ``lora_A`` and ``lora_B``."""
    done = iro("export", bundle, "--out", str(out), *arguments)
    assert done.exit_code == 0, done.output
    tensors = load_file(out / "adapter_model.safetensors")
    first, second = (next(part for name, part in tensors.items() if f"{key}.weight" in name) for key in "AB")
    assert json.loads((out / "adapter_config.json").read_text())["r"] == len(first)
    return done.stdout.splitlines()[:-1], first, second


def test_an_adapter_for_vllm_has_the_ranks_that_it_admits_and_its_error_is_printed(
    tmp_path: Path, two_rounds: Tilt, head_VD: torch.Tensor, model_dir: Path
) -> None:
    """34 ranks become 32. The error: of the two singular values that are left out, over states of the norm's length."""
    bundle = saved(tmp_path / "bundle", two_rounds, model_dir)
    exact = head_adapter(two_rounds, head_VD)
    columns_Vr = (exact.lora_B - exact.lora_B.mean(0)) * exact.lora_A.norm(dim=1)  # rows are orthogonal
    sizes_r = torch.linalg.svdvals(columns_Vr)
    assert len(sizes_r) == 33
    left_out = float(sizes_r[31:].norm() * read_output_head(model_dir).state_length / head_VD.numel() ** 0.5)
    of_bias = 0.25 * float(exact.static.square().mean().sqrt())
    printed, lora_A, lora_B = exported(bundle, tmp_path / "vllm", "--format", "vllm")
    assert len(lora_A) == MAX_RANK == 32 and left_out > 0.01
    assert printed == [
        f"2 of the ranks are left out: off by {left_out:.4f} (root mean square, in logits)",
        f"The bias is one of the ranks: off by {of_bias:.4f} (root mean square, in logits)",
    ]
    states_ND = torch.eye(head_VD.shape[1])
    missing = (exact.additions(states_ND) - exact.static) - states_ND @ lora_A[:-1].T @ lora_B[:, :-1].T
    missing = missing - missing.mean(1, keepdim=True)
    assert float(missing.double().norm()) == pytest.approx(float(sizes_r[31:].norm()), rel=1e-3)
    for rank in ("34", "99"):
        printed, lora_A, lora_B = exported(bundle, tmp_path / rank, "--format", "vllm", "--rank", rank)
        assert (
            len(printed) == 1 and torch.equal(lora_A[:-1], exact.lora_A) and torch.equal(lora_B[:, :-1], exact.lora_B)
        )


def test_an_adapter_for_peft_keeps_all_ranks_unless_it_is_asked_for_fewer(
    tmp_path: Path, two_rounds: Tilt, model_dir: Path
) -> None:
    bundle = saved(tmp_path / "bundle", two_rounds, model_dir)
    printed, lora_A, _ = exported(bundle, tmp_path / "all")
    assert printed == [] and len(lora_A) == 33
    printed, same_A, _ = exported(bundle, tmp_path / "same", "--rank", "33")
    assert printed == [] and torch.equal(same_A, lora_A)
    printed, fewer_A, _ = exported(bundle, tmp_path / "fewer", "--rank", "8")
    assert len(fewer_A) == 8 and printed[0].startswith("25 of the ranks are left out: off by ")


def test_ranks_that_make_no_adapter_are_refused(tmp_path: Path, two_rounds: Tilt, model_dir: Path) -> None:
    bundle, out = saved(tmp_path / "bundle", two_rounds, model_dir), ("--out", str(tmp_path / "out"))
    bias_alone = iro("export", bundle, *out, "--format", "vllm", "--rank", "1")
    line = "Error: --rank 1 is the bias alone, and the tilt reads the model's state: take 2 or more\n"
    assert (bias_alone.exit_code, bias_alone.stderr) == (2, line)
    assert "logit_bias has no ranks: leave --rank out" in refused(bundle, *out, "--format", "logit_bias", "--rank", "8")
    assert "--rank" in refused(bundle, *out, "--rank", "0")
    assert not (tmp_path / "out").exists()
