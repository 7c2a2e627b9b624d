#!/usr/bin/env bash
# The whole study; every line goes on where it stopped. Run from the repository's root.
set -euo pipefail
here=experiments/006-dimoo-tiny
study=outputs/dimoo_tiny
mkdir -p $study
python -m migm.train +experiment=dimoo_tiny
rm -f $here/samples_shortcut_16_4.png
python -m migm.generate +experiment=dimoo_tiny prompts=$here/prompts.txt output=$here/samples_shortcut_16_4.png
cp $study/results.jsonl $study/report/table.md $study/report/equal_time.md $here/
mkdir -p $here/figures && cp $study/report/fd_cifarnet_500_by_time.png $here/figures/
