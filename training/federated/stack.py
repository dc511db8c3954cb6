"""Many copies of one model that take steps of SGD at once, each on its examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from training.federated.rules import Layout

# Layers without parameters that treat examples separately: the examples of all copies form one batch.
BY_EXAMPLE = (nn.Flatten, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU)


Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of outputs [b, ...] against targets [b, ...]."""


def exchanged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What server and clients exchange: the parameters that train, then the floating-point buffers, such as running
    means. Frozen parameters, those without ``requires_grad``, are the same for all."""
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    return _trained(model) | buffers


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class Product(NamedTuple):
    """A linear layer of all copies: ``outputs`` [n, b, o] = ``inputs`` [n, b, i] Wᵀ + bias."""

    weight: Tensor  # [n, o, i]
    bias: Tensor  # [n, o]
    inputs: Tensor
    outputs: Tensor


class Stack:
    """Copies of ``model`` that start from ``starts`` [n, P], vectors in the order of ``exchanged_tensors``.

    The last linear layers of an `nn.Sequential` are batched matrix products; the product that computes the gradient of
    a weight adds it to the weight, so that it is never stored. All other layers use `torch.func.vmap`. Each copy
    updates its own buffers and draws its own dropout masks; buffers of integers start from the model's.
    """

    def __init__(self, model: nn.Module, starts: Tensor, loss: Loss = nn.functional.cross_entropy) -> None:
        self.loss = loss
        shapes = Layout.of(exchanged_tensors(model)).shapes
        parts = starts.split([shape.numel() for shape in shapes.values()], 1)
        self.tensors = {
            name: part.reshape(len(starts), *shape).clone()
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        self.exchanged = list(self.tensors)
        self.tensors |= {
            name: buffer.expand(len(starts), *buffer.shape).clone()
            for name, buffer in model.named_buffers()
            if name not in self.tensors
        }
        self.layers = _layers(model)
        self.differentiated = [
            self.tensors[prefix + name].requires_grad_()
            for prefix, layer in self.layers
            if not _is_product(layer)
            for name in _trained(layer)
        ]

    def vectors(self) -> Tensor:
        """[n, P]."""
        return torch.cat([self.tensors[name].detach().flatten(1) for name in self.exchanged], 1)

    def step(self, inputs: Tensor, targets: Tensor, lr: float, weight_decay: float) -> None:
        """A step of each copy on its mean loss. ``inputs`` [n, b, ...], ``targets`` [n, b, ...]."""
        outputs, products = self._forward(inputs)
        loss = vmap(self.loss)(outputs, targets).sum()  # the gradient of each copy is that of its own mean loss
        variables = [product.outputs for product in products] + self.differentiated
        gradients = torch.autograd.grad(loss, variables, allow_unused=True)
        decay = 1 - lr * weight_decay
        with torch.no_grad():
            for product, gradient in zip(products, gradients, strict=False):
                product.weight.baddbmm_(gradient.mT, product.inputs, beta=decay, alpha=-lr)
                product.bias.mul_(decay).sub_(gradient.sum(1), alpha=lr)
            for tensor, gradient in zip(self.differentiated, gradients[len(products) :], strict=True):
                if gradient is not None:  # a tensor that the loss does not reach stays, as torch.optim.SGD has it
                    tensor.mul_(decay).sub_(gradient, alpha=lr)

    def _forward(self, hidden: Tensor) -> tuple[Tensor, list[Product]]:
        products = []
        for prefix, layer in self.layers:
            if _is_product(layer):
                rows, weight, bias = (
                    hidden.flatten(1, -2),
                    self.tensors[f"{prefix}weight"],
                    self.tensors[f"{prefix}bias"],
                )
                outputs = torch.baddbmm(bias.unsqueeze(1), rows, weight.mT).requires_grad_()
                products.append(Product(weight, bias, rows.detach(), outputs))
                hidden = outputs.unflatten(1, hidden.shape[1:-1])
            elif _is_by_example(layer):
                hidden = layer(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
            else:
                state = {name: self.tensors[prefix + name] for name in _state_names(layer)}
                run_copies = vmap(functional_call, in_dims=(None, 0, 0), randomness="different")
                hidden = run_copies(layer, state, hidden)
        return hidden, products


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Parts of the model, in order, with the prefix of their parameters' names.

    A Sequential has its last layers as parts, as far back as they are linear or in BY_EXAMPLE, and all earlier layers
    as one part. Any other model is one part.
    """
    if type(model) is not nn.Sequential or _shares(model):
        return [("", model)]
    first = len(model)
    while first and (_is_product(model[first - 1]) or _is_by_example(model[first - 1])):
        first -= 1
    body = [("", model[:first])] if first else []
    return body + [(f"{name}.", layer) for name, layer in list(model.named_children())[first:]]


def _state_names(layer: nn.Module) -> list[str]:
    """Of the tensors of which each copy has its own."""
    return [*_trained(layer), *(name for name, _ in layer.named_buffers())]


def _shares(model: nn.Sequential) -> bool:
    """Whether a layer or a parameter occurs twice."""
    parameters = [parameter for layer in model for parameter in layer.parameters()]
    return len(set(model)) < len(model) or len(set(parameters)) < len(parameters)


def _is_by_example(layer: nn.Module) -> bool:
    return type(layer) in BY_EXAMPLE and not getattr(layer, "inplace", False)


def _is_product(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.bias is not None and len(_trained(layer)) == 2
