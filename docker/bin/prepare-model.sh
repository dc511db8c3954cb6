#!/usr/bin/env bash
# Fetches the frozen model into $IRO_HOME, unless it is there.
set -euo pipefail
. "$(dirname "$0")/model.sh"

mkdir -p "$IRO_HOME"
exec 8> "$IRO_HOME/setup.lock"
flock 8  # on a cluster, several start at once
echo "model: $(iro model prepare "$MODEL")"
