#!/usr/bin/env bash
# Steps and runs of the other bases at their published shapes, random weights, batch 1: on one CUDA card of 40 GB or more, about six
# minutes. From the repository's root: OUT=<file> bash experiments/020-speed/run_bases.sh appends lines to OUT. Not run on a card yet.
# A command that fails does not stop the others; after a break the same line goes on.
set -uo pipefail
out=${OUT:-experiments/020-speed/bench_gpu.jsonl}
failed=0
bench() {
    python -m migm.bench "$@" base.random_weights=true 'batch_sizes=[1]' repeats=3 max_seconds=60 resume=true "output=$out" ||
        { failed=1; echo "failed: $*" >&2; }
}

bench +experiment=halton_shortcut 'points={vanilla: [32], shortcut: [[32,8]]}'
bench +experiment=amused_shortcut base=amused_512 'points={vanilla: [12], shortcut: [[12,6]]}'
bench +experiment=meissonic_shortcut 'points={vanilla: [16], shortcut: [[64,14]]}'
bench +experiment=mmada_shortcut 'points={vanilla: [15], shortcut: [[15,5]]}'
exit $failed
