#!/usr/bin/env bash
# Pretrain on the GPUs of this machine: installs JAX with CUDA into .venv, then does what local.sh does.
#
#   launch/gpu.sh [--dry-run] RECIPE DATA RUN [more arguments of `bert-jax pretrain`]
#
# CUDA=cuda12 (default, any NVIDIA driver from 525) or cuda13 (from 580); PYTHON=python3 makes .venv.
set -euo pipefail

usage() { sed -n 's/^# \{0,1\}//; 2,6p' "$0" >&2; exit 2; }
dry=()
[ "${1:-}" = --dry-run ] && { dry=(--dry-run); shift; }
[ $# -ge 3 ] || usage
here=$(cd "$(dirname "$0")" && pwd)

setup=(make -C "$here/.." "PYTHON=${PYTHON:-python3}" ".venv/stamps/${CUDA:-cuda12}")
printf '+'; printf ' %q' "${setup[@]}"; printf '\n'
[ ${#dry[@]} -gt 0 ] || "${setup[@]}"

PATH="$here/../.venv/bin:$PATH" exec "$here/local.sh" ${dry[@]+"${dry[@]}"} "$@"
