# shellcheck shell=bash
# For the other scripts to source: where the frozen model named $MODEL lies, and what it is called.
: "${MODEL:?is the frozen model, such as HuggingFaceTB/SmolLM2-135M-Instruct}" "${IRO_HOME:?is where models lie}"
export IRO_MODEL_DIR="$IRO_HOME/models/${MODEL//\//--}" IRO_MODEL_NAME="${MODEL##*/}"
