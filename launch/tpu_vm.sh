#!/usr/bin/env bash
# Pretrain on a Cloud TPU slice: create it, run on every worker, follow, delete it.
#
#   NAME=bert ZONE=us-east5-b TYPE=v5litepod-16 BUCKET=my-bucket \
#     launch/tpu_vm.sh [--dry-run] RECIPE DATA RUN [more arguments of `bert-jax pretrain`]
#
# BUCKET is mounted on every worker, and DATA and RUN are paths inside it: every host must see both. RECIPE is a path
# in this checkout, whose last commit is copied over. VERSION is the slice's software, SPOT=1 takes spot capacity,
# KEEP=1 leaves the slice standing. A slice that is taken away is made again, and the run continues.
set -euo pipefail

usage() { sed -n 's/^# \{0,1\}//; 2,9p' "$0" >&2; exit 2; }
dry=
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
[ $# -ge 3 ] || usage
recipe=$1 data=$2 run=$3
shift 3
: "${NAME:?give the slice a name: NAME=}" "${ZONE:?say where: ZONE=}" "${TYPE:?say which slice: TYPE=}"
: "${BUCKET:?say which bucket holds DATA and RUN: BUCKET=}"

here=$(cd "$(dirname "$0")/.." && pwd)
tpu=(gcloud compute tpus tpu-vm)
archive=$(mktemp)

do_or_show() { printf '+'; printf ' %q' "$@"; printf '\n'; [ -n "$dry" ] || "$@"; }
on() { do_or_show "${tpu[@]}" ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"; }
delete() { [ -n "${KEEP:-}" ] || do_or_show "${tpu[@]}" delete "$NAME" --zone="$ZONE" --quiet; }
standing() { [ "$("${tpu[@]}" describe "$NAME" --zone="$ZONE" --format='value(state)')" = READY ]; }
trap 'rm -f "$archive"; delete' EXIT

create=("${tpu[@]}" create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="${VERSION:-v2-alpha-tpuv5-lite}")
[ -z "${SPOT:-}" ] || create+=(--spot)
# The slices' own Python is older than 3.11: uv brings one.
setup="set -e; sudo apt-get -qq install -y gcsfuse python3-venv make; mkdir -p ~/bucket ~/bert
mountpoint -q ~/bucket || gcsfuse --implicit-dirs $BUCKET ~/bucket
tar -xzf ~/bert.tgz -C ~/bert; python3 -m venv ~/uv; ~/uv/bin/pip install -q uv; ~/uv/bin/uv python install -q 3.12
make -C ~/bert PYTHON=\"\$(~/uv/bin/uv python find 3.12)\" .venv/stamps/tpu"
train="cd ~/bucket; export PATH=~/bert/.venv/bin:\$PATH
~/bert/launch/local.sh$(printf ' %q' "../bert/$recipe" "$data" "$run" --distributed "$@"); echo \$? > ~/status"
# In the background, so that a dropped connection does not end the run; its exit status goes into a file.
start="rm -f ~/status; nohup bash -c $(printf %q "$train") > ~/log.txt 2>&1 < /dev/null &"
follow="tail -n 5 -F ~/log.txt & while [ ! -e ~/status ]; do sleep 5; done; kill \$!"

do_or_show git -C "$here" archive --format=tgz -o "$archive" HEAD
for (( ; ; )); do
  do_or_show "${create[@]}"
  do_or_show "${tpu[@]}" scp "$archive" "$NAME:bert.tgz" --zone="$ZONE" --worker=all
  on all "$setup"
  on all "$start"
  until on 0 "$follow"; do
    standing || { delete || true; continue 2; }
  done
  on 0 "exit \$(cat ~/status)"
  exit
done
