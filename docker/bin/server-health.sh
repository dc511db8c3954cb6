#!/usr/bin/env bash
# Whether the server on this machine can serve. Not `iro health`, which asks the same: it takes 1.3 s of CPU time to start,
# and on a busy machine exceeds the probe's timeout.
set -euo pipefail

exec 3<> "/dev/tcp/127.0.0.1/${IRO_PORT:-8000}"
printf 'GET /v1/health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
read -t 10 -r _ status _ <&3
[ "$status" = 200 ] || { echo "/v1/health: status $status" >&2; exit 1; }
