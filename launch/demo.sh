#!/usr/bin/env bash
# From the text that every Python installation carries to a small BERT in Hugging Face's format, in minutes on a CPU.
# Stop it whenever you like: what is finished is kept, and the same command goes on from there.
#
#   launch/demo.sh [--dry-run]            everything goes to runs/demo (DIR=elsewhere to change that)
set -euo pipefail
cd "$(dirname "$0")/.."

dir=${DIR:-runs/demo}
dry=
[ "${1:-}" = --dry-run ] && dry=1

say() { # the command as one would type it
  local word
  printf '\n$'
  for word in "$@"; do
    case $word in *[!A-Za-z0-9_./=-]*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
  done
  printf '\n'
}
step() {
  say "$@"
  [ -n "$dry" ] || "$@"
}

mkdir -p "$dir"
# Packages installed since would change the corpus, and with it everything below: it is written once.
[ -e "$dir/corpus.txt" ] || step bert-data pydoc "$dir/corpus.txt"
step bert-data tokenizer "$dir/corpus.txt" --out "$dir/tokenizer" --kind unigram --vocab 2000
step bert-data shards "$dir/corpus.txt" --out "$dir/data" --tokenizer "$dir/tokenizer" --length 32
step bert-jax pretrain configs/demo.toml --data "$dir/data" --run "$dir/run"
step bert-jax export "$dir/run" "$dir/export" --force
step bert-jax fill-mask "$dir/export" \
  "Return a new [MASK] object." \
  "If the argument is not given, the default value is [MASK]." \
  "Raises ValueError if the string is [MASK] a valid number."
step bert-jax report "$dir/run"

printf '\n%-15s%s\n' 'export' "$dir/export"
printf '%-15s%s\n' 'next' "bert-jax fill-mask $dir/export 'Ask it your own [MASK].'" \
  '' 'text of your own: see README.md, "Your own text"'
