#!/usr/bin/env bash
# vLLM over the frozen model. ENGINE_HOST, ENGINE_PORT: where it listens; ENGINE_GPUS: its tensor-parallel size;
# ENGINE_FLAGS: more of vLLM's own flags. The key it asks for is $VLLM_API_KEY.
set -euo pipefail
. "$(dirname "$0")/model.sh"

read -ra flags <<< "${ENGINE_FLAGS:-}"
exec python3 -m vllm.entrypoints.openai.api_server --model "$IRO_MODEL_DIR" --served-model-name "$IRO_MODEL_NAME" \
    --host "${ENGINE_HOST:-0.0.0.0}" --port "${ENGINE_PORT:-8001}" --tensor-parallel-size "${ENGINE_GPUS:-1}" \
    --enable-prefix-caching --enable-prompt-tokens-details --structured-outputs-config.backend guidance "${flags[@]}"
