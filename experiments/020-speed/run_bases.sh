#!/usr/bin/env bash
# Steps, runs and memory of the other bases at their published shapes, random weights, batch 1: on one CUDA card of 40 GB or more.
# No measurement begins after max_seconds, five minutes in all; imports and random weights add one or two. From the repository's root:
#   OUT=<file> bash experiments/020-speed/run_bases.sh           lines are appended to OUT. Not run on a card yet.
#   TINY=1 OUT=<file> bash experiments/020-speed/run_bases.sh    a rehearsal: the same commands at small sizes on a CPU
# A command that fails does not stop the others; after a break the same line goes on.
set -uo pipefail
here=experiments/020-speed
out=${OUT:-$here/bench_gpu.jsonl}
halton=() amused=() meissonic=() mmada=()
[[ ! ${TINY:-} ]] || source "${BASH_SOURCE[0]%/*}/../013-bases/tiny.sh"
unset MIGM_PROMPTS                         # the bundled prompts
failed=0
bench() {
    python -m migm.bench "$@" base.random_weights=true 'batch_sizes=[1]' repeats=3 resume=true "output=$out" ||
        { failed=1; echo "failed: $*" >&2; }
}

bench +experiment=halton_shortcut 'points={vanilla: [32], shortcut: [[32,8]]}' "${halton[@]}" max_seconds=50
bench +experiment=amused_shortcut base=amused_512 'points={vanilla: [12], shortcut: [[12,6]]}' "${amused[@]}" max_seconds=50
bench +experiment=meissonic_shortcut 'points={vanilla: [16], shortcut: [[64,14]]}' "${meissonic[@]}" max_seconds=70
bench +experiment=mmada_shortcut 'points={vanilla: [15], shortcut: [[15,5]]}' "${mmada[@]}" max_seconds=80
# 8-bit linears: of the base alone that is bound by them; cards without 8-bit products refuse the line
bench +experiment=mmada_shortcut accelerator=shortcut 'points={vanilla: [15], shortcut: [[15,5]]}' "${mmada[@]}" max_seconds=60 \
    'compare=[{base.linear: fp8_rowwise, accelerator.predictor.linear: fp8_rowwise}]'
exit $failed
