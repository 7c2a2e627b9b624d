#!/usr/bin/env bash
# Each method with a sampler of its own: six settings around vanilla 32's, on seeds that no table shows; then every method's best one
# beside vanilla 32's, on other seeds. It goes on where it stopped. From the repository's root:
#   bash experiments/007-cifar10-deep/run_samplers.sh           2,000 images to search, 5,000 to verify: for a GPU
#   SMALL=1 IMAGES=100 VERIFY=200 BATCH=50 bash ...         three points and four settings, for a CPU: about 75 minutes of a core
set -euo pipefail
here=experiments/007-cifar10-deep
outputs=${OUTPUTS:-outputs} verify=${VERIFY:-5000} seeds=${SEED_SETS:-[1]}
declare -A points=([vanilla]='[6, 8, 10, 12, 32]' [taylorseer]='[16, 32]' [taylorseer_uniform]='[[32, 8]]' [reuse]='[[32, 8]]'
    [foca_uniform]='[{num_steps: 32, num_full_steps: 8, predictor.rule.fixed_step: true}]' [shortcut_bundled]='[[16, 4], [16, 8], [32, 8]]')
settings=(w1_t60_i1 w1.4_t60_i1 w0.7_t60_i1 w1.8_t60_i1 w1_t30_i1 w1_t60_i1.06)    # guidance, temperature of the selection, of the draw
if [[ ${SMALL:-} ]]; then
    points=([vanilla]='[6]' [taylorseer]='[16]' [shortcut_bundled]='[[16, 4]]') settings=("${settings[@]:0:4}")
fi
all=; for method in "${!points[@]}"; do all+="${all:+, }$method: ${points[$method]}"; done
measure() {                                         # SETTING IMAGES SEED_SETS POINTS
    IFS=_ read -r w t i <<< "$1"
    python -m migm.evaluate +experiment=cifar10_deep_study "name=cifar10_deep_samplers/$1" "paths.output_dir=$outputs" cost=false \
        "sampling.guidance.guidance_scale=${w#w}" "sampling.select.temperature=${t#t}" "sampling.draw.inverse_temperature=${i#i}" \
        'metric=[fd_cifarnet,kd_cifarnet,class_agreement]' "evalset.num_images=$2" "evalset.seed_sets=$3" "points=$4" ${BATCH:+"evalset.batch_size=$BATCH"} < /dev/null
}
for setting in "${settings[@]}"; do measure "$setting" "${IMAGES:-2000}" '[1001]' "{$all}"; done
measure w1_t60_i1 "$verify" "$seeds" "{$all}"
python $here/samplers.py "$outputs/cifar10_deep_samplers" |
    while IFS=$'\t' read -r method setting; do measure "$setting" "$verify" "$seeds" "{$method: ${points[$method]}}"; done
python $here/samplers.py "$outputs/cifar10_deep_samplers"
