"""Value functions that steer a frozen language model: features, heads, fits, stacks, bundles."""

from value_heads.backbone import LoraBackbone, LoraValues
from value_heads.backbone_fit import Example, fit_lora
from value_heads.bundle import BundleMismatch, load_bundle, save_bundle
from value_heads.features import FeatureSpec, features
from value_heads.fit import HeadFit, Rows, fit_logistic, fit_ridge, lambda_returns, response_rows
from value_heads.heads import LinearHead, MLPHead
from value_heads.mlp_fit import fit_mlp
from value_heads.stack import ValueStack

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
