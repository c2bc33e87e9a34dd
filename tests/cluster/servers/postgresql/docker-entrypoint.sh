#!/bin/bash
# What the chart asks of the image's entry point: PGDATA, POSTGRES_PASSWORD, POSTGRES_INITDB_ARGS, options as arguments.
set -euo pipefail
mkdir -p "$PGDATA"
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  # shellcheck disable=SC2086
  initdb --username=postgres --pwfile=<(printf '%s' "$POSTGRES_PASSWORD") --auth-host=scram-sha-256 --auth-local=trust \
    ${POSTGRES_INITDB_ARGS:-}
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
fi
if [ "${1:0:1}" = - ]; then set -- postgres "$@"; fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
