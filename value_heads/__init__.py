"""Value functions that steer a frozen language model: features, heads, fits, stacks, bundles."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from value_heads.bundle import BundleMismatch, load_bundle, save_bundle
from value_heads.features import FeatureSpec, features
from value_heads.fit import HeadFit, Rows, fit_logistic, fit_ridge, lambda_returns, response_rows
from value_heads.heads import LinearHead, MLPHead
from value_heads.mlp_fit import fit_mlp
from value_heads.stack import ValueStack

if TYPE_CHECKING:
    from value_heads.backbone import LoraBackbone, LoraValues
    from value_heads.backbone_fit import Example, fit_lora

# Imported on first use: transformers and peft take seconds, in processes that may have no LoRA value functions.
LORA_MODULES = {
    "LoraBackbone": "backbone",
    "LoraValues": "backbone",
    "Example": "backbone_fit",
    "fit_lora": "backbone_fit",
}

__all__ = [
    "BundleMismatch",
    "Example",
    "FeatureSpec",
    "HeadFit",
    "LinearHead",
    "LoraBackbone",
    "LoraValues",
    "MLPHead",
    "Rows",
    "ValueStack",
    "features",
    "fit_logistic",
    "fit_lora",
    "fit_mlp",
    "fit_ridge",
    "lambda_returns",
    "load_bundle",
    "response_rows",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in LORA_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{LORA_MODULES[name]}"), name)
