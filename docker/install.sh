#!/usr/bin/env bash
# The installation that the images hold: install.sh libraries|iro|vllm VENV SOURCE
#   libraries  everything Iro needs to serve and to work, at the versions of constraints.txt
#   iro        Iro itself, after `libraries`: a layer of its own, as it changes most
#   vllm       vLLM for CPUs, in an environment of its own
# TORCH_INDEX: where PyTorch's builds for CPUs are, which are a tenth of those for GPUs; empty: pip's own index.
set -euo pipefail

what=$1 venv=$2 source=$3
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
install() { python3 -m pip --python "$venv/bin/python" install --quiet "$@"; }

case $what in
libraries)
    python3 -m venv --without-pip "$venv"
    wanted=$(mktemp)
    python3 - "$source/pyproject.toml" > "$wanted" <<'PYTHON'
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extras = [project["optional-dependencies"].get(name, []) for name in ("postgres", "tracing")]
print(*project["dependencies"], *sum(extras, []), sep="\n")
PYTHON
    torch=$(grep '^torch' "$wanted")
    if [ -n "${TORCH_INDEX:-}" ]; then
        install --no-deps --index-url "$TORCH_INDEX" "$torch"
    fi
    install --requirement "$wanted" --constraint "$source/constraints.txt"
    rm "$wanted"
    ;;
iro)
    install --no-deps "$source"
    ;;
vllm)
    python3 -m venv --without-pip "$venv"
    install --requirement "$source/vllm-requirements.txt"
    # Two packages that vLLM does not need here, whose builds look for CUDA and break the import of transformers.
    python3 -m pip --python "$venv/bin/python" uninstall --quiet --yes torchaudio torchcodec
    ;;
*)
    echo "install.sh: libraries, iro or vllm, not $what" >&2
    exit 2
    ;;
esac
