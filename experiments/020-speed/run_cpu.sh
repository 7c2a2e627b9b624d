#!/usr/bin/env bash
# On a CPU: MaskGIT's at batch 1, about half an hour on two quiet cores. From the repository's root.
set -euo pipefail
here=experiments/020-speed
python -m migm.bench +experiment=maskgit_shortcut base.random_weights=true 'batch_sizes=[1]' repeats=1 output=$here/bench.jsonl
