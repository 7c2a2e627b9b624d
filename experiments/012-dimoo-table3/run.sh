#!/usr/bin/env bash
# The ablations of Table 3, on a CUDA device: every line trains one network and measures (64,14), (64,11), (64,9).
# Trajectories (51 MB) are shared by all. Run from the repository's root.
set -euo pipefail
experiment="+experiment=dimoo_shortcut"
rows="~points.vanilla ~points.ml_cache_w01 ~points.ml_cache_w0"
variants=(
    "name=dimoo_shortcut"
    "name=dimoo_r1 shortcut.bottleneck_ratio=1"
    "name=dimoo_r4 shortcut.bottleneck_ratio=4"
    "name=dimoo_d2 shortcut.depth=2"
    "name=dimoo_no_cross_attention shortcut.cross_attention=false"
    "name=dimoo_no_time shortcut.time=false"
    "name=dimoo_no_prompt shortcut.prompt=false"
    "name=dimoo_kl objective=mse_kl +objective.rows=all"
    "name=dimoo_rollout2 objective=rollout +objective.rows=all"
    "name=dimoo_rollout3 objective=rollout +objective.rows=all objective.rollout.max_length=3"
)
for variant in "${variants[@]}"; do
    # shellcheck disable=SC2086  # one word each
    python -m migm.train $experiment $rows $variant
done
