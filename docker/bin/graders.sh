#!/usr/bin/env bash
# Python graders, for servers and workers that send $IRO_GRADER_SERVICE_KEY.
set -euo pipefail

exec iro graders
