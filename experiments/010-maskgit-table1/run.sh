#!/usr/bin/env bash
# Every row of Table 1 and the variants of the network, on a CUDA device; every line goes on where it stopped.
# The authors' files are fetched from Hugging Face once (3.1 GB + 20 MB). Run from the repository's root.
set -euo pipefail
experiment="+experiment=maskgit_shortcut"
released="[[15,7],[15,8],[32,8],[32,9],[32,12]]"

# 1. Table 1 with the authors' network: vanilla and shortcut rows side by side.
python -m migm.evaluate $experiment '~points.shortcut' "+points.shortcut_released=$released" name=table1
# 2. The same with dropout left on, as the paper measured it.
python -m migm.evaluate $experiment '~points.shortcut' '~points.vanilla' "+points.shortcut_released_dropout=$released" name=table1
# 3. What a step costs at batch 1 and 128, against the floor.
python -m migm.bench $experiment name=table1
# 4. Our own training of the published network, then of its variants (2.4 TB of trajectories are shared by all).
python -m migm.train $experiment
variants=(
    "name=maskgit_r1 shortcut.bottleneck_ratio=1"
    "name=maskgit_r4 shortcut.bottleneck_ratio=4"
    "name=maskgit_d2 shortcut.depth=2"
    "name=maskgit_kl objective=mse_kl"
    "name=maskgit_rollout2 objective=rollout"
    "name=maskgit_rollout3 objective=rollout objective.rollout.max_length=3"
    "name=maskgit_no_time shortcut.time=false"
    "name=maskgit_no_cross_attention shortcut.cross_attention=false"
)
for variant in "${variants[@]}"; do
    # shellcheck disable=SC2086  # one word each
    python -m migm.train $experiment $variant
done
