#!/usr/bin/env bash
# Builds and starts everything, and waits until the API answers. The first time it writes .env, with secrets of its own.
#   up.sh                    on CPUs
#   up.sh gpu                vLLM on this machine's NVIDIA GPUs
#   up.sh [gpu] graders      with what isolates python graders: README.md says what that allows
set -euo pipefail
cd "$(dirname "$0")"

secret() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }
if [ ! -e .env ]; then
    (umask 077 && sed -e "s/^POSTGRES_PASSWORD=$/&$(secret)/" -e "s/^IRO_ENGINE_KEY=$/&$(secret)/" .env.example > .env)
fi
files=(--file compose.yaml)
for name in "$@"; do
    files+=(--file "compose.$name.yaml")
done
docker compose "${files[@]}" up --build --detach
for ((tries = 0; tries < 120; tries++)); do
    if docker compose "${files[@]}" exec -T server /iro/bin/server-health.sh 2> /dev/null; then
        echo "http://127.0.0.1:$(sed -n 's/^PORT=//p' .env)/v1 answers."
        # None after a restore: the keys are those of the backup.
        if key=$(docker compose "${files[@]}" exec -T server cat /data/first.key 2> /dev/null); then
            echo "The first key: $key"
        fi
        exit 0
    fi
    sleep 5
done
echo "The server does not answer: docker compose logs server" >&2
exit 1
