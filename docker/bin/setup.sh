#!/usr/bin/env bash
# Before the first start and after each upgrade: the model is fetched, the database's tables are made, and where there
# is no API key yet, one is, into $IRO_DATA_DIR/first.key. To run it again changes nothing.
set -euo pipefail

"$(dirname "$0")/prepare-model.sh"
exec 9> "$IRO_DATA_DIR/setup.lock"
flock 9  # on a cluster, several start at once
iro db upgrade > /dev/null
keys=$(iro keys list)  # apart from the test, where its failure would count as no keys
if [ -z "$keys" ]; then
    key=$(iro keys create first)
    (umask 077 && echo "$key" > "$IRO_DATA_DIR/first.key")
    echo "first API key: in $IRO_DATA_DIR/first.key"
fi
