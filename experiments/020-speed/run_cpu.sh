#!/usr/bin/env bash
# On a CPU: MaskGIT's at batch 1, two of Table 1's runs, about five minutes on two quiet cores. From the repository's root.
set -euo pipefail
here=experiments/020-speed
python -m migm.bench +experiment=maskgit_shortcut base.random_weights=true 'batch_sizes=[1]' repeats=1 \
    '~points.vanilla' '~points.shortcut' '+points.vanilla=[8]' '+points.shortcut=[[15,7]]' output=$here/bench.jsonl
