#!/usr/bin/env bash
# Whether the service on this machine answers GET with status 200: http-health.sh PATH PORT, or $IRO_PORT. Not `iro
# health`, which asks the same: it takes 1.3 s of CPU time to start, and on a busy machine exceeds the probe's timeout.
set -euo pipefail

path=$1 port=${IRO_PORT:-$2}
exec 3<> "/dev/tcp/127.0.0.1/$port"
printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$path" >&3
read -t 10 -r _ status _ <&3
[ "$status" = 200 ] || { echo "$path: status $status" >&2; exit 1; }
