#!/usr/bin/env bash
# The rows of Table 2 but Di[M]O, on a CUDA device; every line goes on where it stopped.
# Lumina-DiMOO and the authors' shortcut are fetched from Hugging Face once (17 GB + 0.9 GB). Run from the repository's root.
set -euo pipefail
experiment="+experiment=dimoo_shortcut"

# 1. Table 2 with the authors' network, all rows side by side.
python -m migm.evaluate $experiment '~points.shortcut' '+points.shortcut_released_dimoo=[[64,14],[64,11],[64,9]]' name=table2
# 2. The images themselves, 16 prompts by two seeds, with the seconds of each.
for setting in vanilla:64:64 ml_cache_w01:64:64 ml_cache_w0:64:64 shortcut_released_dimoo:64:14 shortcut_released_dimoo:64:11 shortcut_released_dimoo:64:9; do
    IFS=: read -r accelerator n b <<< "$setting"
    python -m migm.generate $experiment accelerator="$accelerator" sampling.num_steps="$n" sampling.num_full_steps="$b" \
        'seeds=[0,1]' name="table2_${accelerator}_${n}_${b}"
done
# 3. What a step costs at batch 1, against the floor.
python -m migm.bench $experiment name=table2
# 4. Our own training of the published network (51 MB of trajectories), and its rows.
python -m migm.train $experiment
