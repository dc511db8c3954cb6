#!/usr/bin/env bash
# The API. Its jobs are the workers' where IRO_JOB_CONCURRENCY is 0.
set -euo pipefail
. "$(dirname "$0")/model.sh"

exec iro serve
