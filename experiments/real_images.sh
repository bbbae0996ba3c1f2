#!/usr/bin/env bash
# What attention is worth on real images: three sections of docs/results.md (real images, attention
# as the only mixer, Balloon in five folds).
#
#   bash experiments/real_images.sh            # train what is missing, print the tables
#   bash experiments/real_images.sh --table    # print what has been measured (and draw real_context.png)
#
# Options have to be those of all three: --table, --weights FILE.
set -euo pipefail
cd "$(dirname "$0")/.."

for script in real_context token_mixers balloon_folds; do
  echo "== $script"
  "${PYTHON:-python}" "experiments/$script.py" "$@"
done
