#!/usr/bin/env bash
# What attention is worth on real images: every table of that part of docs/results.md.
#
#   bash experiments/real_images.sh            # train what is missing, print the tables
#   bash experiments/real_images.sh --table    # only print what has been measured
set -euo pipefail
cd "$(dirname "$0")/.."

for script in real_context token_mixers balloon_folds; do
  echo "== $script"
  "${PYTHON:-python}" "experiments/$script.py" "$@"
done
