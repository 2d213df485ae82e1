#!/usr/bin/env bash
# Pretrain on this machine with whatever devices JAX finds, and start again whenever the run saved and stopped.
#
#   launch/local.sh [--dry-run] RECIPE DATA RUN [more arguments of `bert-jax pretrain`, such as --set train.seed=1]
set -euo pipefail

usage() { sed -n 's/^# \{0,1\}//; 2,4p' "$0" >&2; exit 2; }
dry=
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
[ $# -ge 3 ] || usage
recipe=$1 data=$2 run=$3
shift 3

command=(bert-jax pretrain "$recipe" --data "$data" --run "$run" "$@")
printf '+'; printf ' %q' "${command[@]}"; printf '\n'
[ -z "$dry" ] || exit 0

# 75: stopped by notice after saving; the same command continues.
until "${command[@]}"; do
  status=$?
  [ "$status" -eq 75 ] || exit "$status"
  echo "launch: saved and stopped; starting again" >&2
done
