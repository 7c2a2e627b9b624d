#!/usr/bin/env bash
# The study, in parts of a few minutes on a GPU; every line goes on where it stopped. From the repository's root:
#   bash experiments/007-cifar10-deep/run.sh           all of it: 5,000 images a point, three seed sets, then times
#   SEED_SETS=[1] bash experiments/007-cifar10-deep/run.sh           one seed set: 4 minutes on an H200, and times
#   IMAGES=500 POINTS='{vanilla: [12], taylorseer: [32]}' bash ...   some points at fewer images: about 25 minutes each on 2 CPU cores
set -euo pipefail
here=experiments/007-cifar10-deep
study=outputs/cifar10_deep_study
shared=(+experiment=cifar10_deep_study)
few=("evalset.num_images=${IMAGES:-5000}" "evalset.seed_sets=${SEED_SETS:-[1,2,3]}" ${POINTS:+"points=$POINTS"})
mkdir -p $study
if [ -f $here/results.jsonl ] && [ ! -f $study/results.jsonl ]; then cp $here/results.jsonl $study/; fi
python -m migm.calibrate "${shared[@]}" num_images=128
python -m migm.evaluate "${shared[@]}" "${few[@]}" cost=false
if [ -z "${IMAGES:-}" ]; then python -m migm.evaluate "${shared[@]}" "${few[@]}"; fi
python -m migm.report "${shared[@]}" baseline="vanilla 32"
cp $study/results.jsonl $study/report/table.md $study/report/fronts.md $here/
mkdir -p $here/figures
cp $study/report/*.png $here/figures/ || true    # there are none before times are measured
