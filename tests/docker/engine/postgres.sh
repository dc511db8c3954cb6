#!/usr/bin/env bash
# PostgreSQL as user postgres, its cluster made the first time: user $POSTGRES_USER with $POSTGRES_PASSWORD, database
# $POSTGRES_DB.
set -euo pipefail

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    chown -R postgres "$PGDATA"
    chmod 700 "$PGDATA"
    exec setpriv --reuid postgres --regid postgres --init-groups "$0"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username "$POSTGRES_USER" --pwfile <(echo "$POSTGRES_PASSWORD") --auth-local trust --auth-host scram-sha-256
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    pg_ctl -w start -o "-c listen_addresses=''"
    createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -w stop
fi
unset POSTGRES_PASSWORD
exec postgres -c listen_addresses='*'
