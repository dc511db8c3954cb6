#!/usr/bin/env bash
# The installation that the images hold: install.sh libraries|iro|vllm VENV SOURCE [PREFIX]
#   libraries  everything Iro needs to serve and to work, at the versions of constraints.txt
#   iro        Iro itself, after `libraries`; to PREFIX where one is given, to be copied over VENV as a layer of its own
#   vllm       vLLM for CPUs, in an environment of its own
# TORCH_INDEX: where PyTorch's builds for CPUs are, which are a tenth of those for GPUs; empty: pip's own index.
# TORCH_VERSION: the version taken from there.
set -euo pipefail

what=$1 venv=$2 source=$3 prefix=${4:-}
export PIP_DISABLE_PIP_VERSION_CHECK=1
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
    if [ -n "${TORCH_INDEX:-}" ]; then
        install --no-deps --index-url "$TORCH_INDEX" "torch==${TORCH_VERSION:?is needed with TORCH_INDEX}"
    fi
    install --requirement "$wanted" --constraint "$source/constraints.txt"
    rm "$wanted"
    # What only building and testing the libraries needs: 230 MB.
    find "$venv/lib" -type d \( -name tests -o -path '*/torch/include' \) -prune -exec rm -r {} +
    ;;
iro)
    install --no-deps ${prefix:+--prefix "$prefix"} "$source"
    ;;
vllm)
    python3 -m venv --without-pip "$venv"
    # It requires a build of PyTorch for CPUs by name, which PyPI does not have.
    install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement "$source/vllm-requirements.txt"
    # Two packages that vLLM does not need here, whose builds look for CUDA and break the import of transformers.
    python3 -m pip --python "$venv/bin/python" uninstall --quiet --yes torchaudio torchcodec
    ;;
*)
    echo "install.sh: libraries, iro or vllm, not $what" >&2
    exit 2
    ;;
esac
