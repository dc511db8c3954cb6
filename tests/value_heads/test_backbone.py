"""Value functions with a backbone of their own: their values, their weights, and a bundle of them."""

from __future__ import annotations

import pytest
import torch

from tests.value_heads.lora import bundle, full, shapes_read, write_model
from value_heads import BundleMismatch, LoraBackbone, LoraValues, load_bundle, save_bundle

ANSWERS = [([1, 2, 3], [4, 5]), ([9] * 7, [6, 7, 8, 9]), ([1, 2, 3], [7]), ([9] * 7, [1, 2])]


def whole_rows(backbone: LoraBackbone) -> list[torch.Tensor]:
    """Values of the responses, each read with its prompt in a row of its own."""
    return [backbone.values(1, torch.tensor([[*prompt, *answer]]))[0, len(prompt) :] for prompt, answer in ANSWERS]


def grouped_rows(backbone: LoraBackbone) -> list[torch.Tensor]:
    values_RT = backbone.response_values(1, [prompt for prompt, _ in ANSWERS], [answer for _, answer in ANSWERS])
    return [values_T[: len(answer)] for values_T, (_, answer) in zip(values_RT, ANSWERS, strict=True)]


def test_a_prompt_read_once_gives_the_values_of_whole_rows(values, exact, windowed):
    read: list[tuple[int, ...]] = []
    hook = shapes_read(values.backbone, read)
    grouped = grouped_rows(values.backbone)
    hook.remove()
    assert read == [(2, 7), (4, 4)]
    for grouped_values, expected in zip(grouped, whole_rows(values.backbone), strict=True):
        torch.testing.assert_close(grouped_values, expected, atol=1e-5, rtol=1e-5)
    for backbone in (exact.backbone, windowed.backbone):
        for grouped_values, expected in zip(grouped_rows(backbone), whole_rows(backbone), strict=True):
            torch.testing.assert_close(grouped_values, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("model", ["exact", "windowed"])
def test_a_prompt_read_once_gives_the_gradients_of_whole_rows(model, request):
    backbone, gradients = request.getfixturevalue(model).backbone, []
    for rows in (grouped_rows, whole_rows):
        with backbone.training(1) as parameters:
            torch.cat(rows(backbone)).square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in parameters])
            for parameter in parameters:
                parameter.grad = None
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])
    for grouped, separate in zip(*gradients, strict=True):
        torch.testing.assert_close(grouped, separate, atol=1e-5, rtol=1e-5)


async def test_a_bundle_brings_adapters_back_to_their_backbone_only(values, model_dir, tmp_path):
    hashes = {"model_hash": "a", "template_hash": "b"}
    save_bundle(tmp_path, values, **hashes)
    loaded = load_bundle(tmp_path, **hashes, backbone_dir=model_dir)
    ids = [4, 8, 15, 16, 23, 42]
    assert full(loaded, ids) == full(values, ids)
    assert loaded.betas == values.betas and loaded.layers == ()
    with pytest.raises(ValueError, match="backbone_dir"):
        load_bundle(tmp_path, **hashes)
    other_model = write_model(tmp_path / "other", seed=1)
    with pytest.raises(BundleMismatch, match="value backbone"):
        load_bundle(tmp_path, **hashes, backbone_dir=other_model)


def test_loading_a_bundle_draws_no_random_numbers(model_dir):
    state = bundle(model_dir, 0).backbone.iteration_state(0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4)
    backbone.add_iteration(state)
    full(LoraValues(backbone, [1.0]), [1, 2])
    assert torch.equal(torch.rand(3), expected)


def test_a_16_bit_backbone_keeps_adapters_in_32(values, model_dir):
    """As on a GPU; a bundle fitted on a CPU belongs to it as well."""
    half = bundle(model_dir, 0, dtype=torch.bfloat16)
    weights = {name: weight.dtype for name, weight in half.backbone.model.named_parameters()}
    assert {dtype for name, dtype in weights.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in weights.items() if "lora_" not in name} == {torch.bfloat16}
    assert half.backbone.backbone_hash == values.backbone.backbone_hash
    ids = [4, 8, 15, 16, 23, 42]
    full_precision = bundle(model_dir, 0)
    assert full(half, ids) == pytest.approx(full(full_precision, ids), rel=0.05)
    assert full(half, ids) != full(full_precision, ids)


def test_betas_name_iterations_that_exist(values):
    assert values.with_betas([3, 3, 3]).betas == (3, 3, 3)
    for betas in ([], [1.0] * 4, [1.0, -1.0]):
        with pytest.raises(ValueError, match=r"beta|value function"):
            LoraValues(values.backbone, betas)
