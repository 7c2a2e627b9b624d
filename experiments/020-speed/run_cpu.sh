#!/usr/bin/env bash
# On a CPU: MaskGIT's at batch 1, steps and runs of two of them, about four minutes on two cores. From the repository's root.
set -euo pipefail
here=experiments/020-speed
python -m migm.bench +experiment=maskgit_shortcut base.random_weights=true 'batch_sizes=[1]' repeats=1 \
    '~points.vanilla' '~points.shortcut' '+points.vanilla=[2]' '+points.shortcut=[[2,1]]' output=$here/bench.jsonl
