#!/usr/bin/env bash
# On a CPU: MaskGIT's at batch 1, steps and runs of two of them, about four minutes on two cores; then training steps of the
# small base at its true size, a minute, and its steps and runs, three minutes. From the repository's root. PART=train makes the second part alone.
set -euo pipefail
here=experiments/020-speed
[[ ${PART:-} == train ]] || python -m migm.bench +experiment=maskgit_shortcut base.random_weights=true 'batch_sizes=[1]' repeats=1 \
    '~points.vanilla' '~points.shortcut' '+points.vanilla=[2]' '+points.shortcut=[[2,1]]' output=$here/bench.jsonl
python -m migm.bench +experiment=cifar10_shortcut part=train device=cpu num_threads=1 repeats=3 output=$here/bench.jsonl
[[ ${PART:-} == train ]] || python -m migm.bench +experiment=cifar10_shortcut 'batch_sizes=[1,20]' repeats=5 num_threads=1 device=cpu \
    max_seconds=150 output=$here/bench.jsonl
