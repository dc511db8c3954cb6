#!/usr/bin/env bash
# Builds and starts everything, and waits until the API answers. The first time it writes .env, with secrets of its own.
#   up.sh                    on CPUs
#   up.sh gpu                vLLM on this machine's NVIDIA GPUs
#   up.sh [gpu] graders      with the service that isolates python graders: README.md says what that allows
set -euo pipefail
cd "$(dirname "$0")"

secret() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }
[ -e .env ] || (umask 077 && cp .env.example .env)
for name in POSTGRES_PASSWORD IRO_ENGINE_KEY IRO_GRADER_SERVICE_KEY; do
    grep -q "^$name=" .env || echo "$name=" >> .env  # an earlier version had it not
    sed -i "s/^$name=$/&$(secret)/" .env
done
files=(--file compose.yaml)
for name in "$@"; do
    files+=(--file "compose.$name.yaml")
done
docker compose "${files[@]}" up --build --detach --remove-orphans
for ((tries = 0; tries < 120; tries++)); do
    if docker compose "${files[@]}" exec -T server /iro/bin/http-health.sh /v1/health 8000 2> /dev/null; then
        echo "http://127.0.0.1:$(sed -n 's/^PORT=//p' .env)/v1 answers."
        # None after a restore: the keys are those of the backup. Revoking the key leaves the file.
        if key=$(docker compose "${files[@]}" exec -T server cat /data/first.key 2> /dev/null); then
            echo "The first key: $key (unless it has been revoked)"
        fi
        exit 0
    fi
    sleep 5
done
echo "The server does not answer: docker compose logs server" >&2
exit 1
