#!/usr/bin/env bash
# Jobs, without the API.
set -euo pipefail

exec iro work
