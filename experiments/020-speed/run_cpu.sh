#!/usr/bin/env bash
# On a CPU, from the repository's root, about 18 minutes on two cores: training steps of the small base at its true size (a minute; PART=train
# makes these alone), its steps and runs at batch 1, 20 and 100, the deeper base's and dimoo_tiny's, and MaskGIT's at batch 1.
set -euo pipefail
out=output=experiments/020-speed/bench.jsonl
quiet=(device=cpu num_threads=1 "$out")
python -m migm.bench +experiment=cifar10_shortcut part=train repeats=3 "${quiet[@]}"
if [[ ${PART:-} == train ]]; then exit; fi
python -m migm.bench +experiment=cifar10_shortcut 'batch_sizes=[1,20]' repeats=5 max_seconds=150 "${quiet[@]}"
python -m migm.bench +experiment=cifar10_shortcut 'batch_sizes=[100]' repeats=3 max_seconds=200 "${quiet[@]}" '~points' \
    '+points={vanilla: [4, 16], shortcut: [[16, 2], [16, 4]], reuse: [[16, 4]]}'
python -m migm.bench +experiment=cifar10_deep 'batch_sizes=[1]' repeats=3 max_seconds=240 "${quiet[@]}" '~points' \
    '+points={vanilla: [8, 32], reuse: [[32, 8]], taylorseer: [32], shortcut_bundled: [[32, 8]]}'
python -m migm.bench +experiment=dimoo_tiny 'batch_sizes=[1,100]' repeats=3 max_seconds=200 "${quiet[@]}" '~points' \
    '+points={vanilla: [4, 16], shortcut: [[16, 2], [16, 4]], reuse: [[16, 4]]}'
python -m migm.bench +experiment=maskgit_shortcut base.random_weights=true 'batch_sizes=[1]' repeats=1 \
    '~points.vanilla' '~points.shortcut' '+points.vanilla=[2]' '+points.shortcut=[[2,1]]' "$out"
