#!/usr/bin/env bash
# Whether vLLM on this machine answers.
set -euo pipefail

exec python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=4)' \
    "http://127.0.0.1:${ENGINE_PORT:-8001}/health"
