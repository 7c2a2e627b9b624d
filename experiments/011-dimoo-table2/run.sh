#!/usr/bin/env bash
# The rows of Table 2, on a CUDA device; every line goes on where it stopped. Run from the repository's root.
# Lumina-DiMOO and the authors' shortcut are fetched from Hugging Face once (17 GB + 0.9 GB), for Di[M]O another 6 GB.
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
# 3. Di[M]O: one step of another model, distilled from Meissonic (1.0 B parameters, float32, pixels rounded down, as its authors draw).
#    A large part of its speed-up over Lumina-DiMOO is that of an eighth of the parameters. Masks and noise as in its training
#    (ratio 0.5, sigma 0.3), and as in its sampling script.
for start in 0.5:0.3 0.6:0.1; do
    IFS=: read -r ratio sigma <<< "$start"
    dimo="base=dimo_meissonic base.ratio=$ratio base.sigma=$sigma name=table2_dimo_${ratio}_${sigma}"
    python -m migm.evaluate $experiment $dimo 'points={vanilla: [1]}'
    python -m migm.generate $experiment $dimo accelerator=vanilla 'seeds=[0,1]'
done
# 4. What a step costs at batch 1, against the floor.
python -m migm.bench $experiment name=table2
# 5. Our own training of the published network (51 MB of trajectories), and its rows.
python -m migm.train $experiment
