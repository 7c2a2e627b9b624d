#!/usr/bin/env bash
# The whole study; every line goes on where it stopped. Run from the repository's root.
set -euo pipefail
here=experiments/002-rivals-cifar10
study=outputs/rivals_cifar10
mkdir -p $study
if [ -f $here/results.jsonl ] && [ ! -f $study/results.jsonl ]; then cp $here/results.jsonl $study/; fi
python -m migm.train +experiment=rivals_cifar10 evaluate=false
python -m migm.calibrate +experiment=rivals_cifar10
python -m migm.evaluate +experiment=rivals_cifar10
python -m migm.report +experiment=rivals_cifar10 baseline="vanilla 16"
cp $study/results.jsonl $study/report/table.md $study/report/equal_time.md $study/report/best.md $study/report/fronts.md $here/
mkdir -p $here/figures && cp $study/report/fd_cifarnet_500_by_*.png $here/figures/
