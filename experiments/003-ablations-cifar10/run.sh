#!/usr/bin/env bash
# The whole study; every line goes on where it stopped. Run from the repository's root.
# The shortcut as it is (R 2, D 1, MSE, features in bfloat16, 500 steps) is a trial of the first sweep, left out of the others.
set -euo pipefail
here=experiments/003-ablations-cifar10
study=outputs/ablations_cifar10
python -m migm.evaluate +experiment=ablations_cifar10
python -m migm.train -m +experiment=ablations_cifar10 +sweep=ablation_rd
python -m migm.train -m +experiment=ablations_cifar10 +sweep=ablation_attention shortcut.cross_attention=false shortcut.time=true
python -m migm.train -m +experiment=ablations_cifar10 +sweep=ablation_attention shortcut.cross_attention=true shortcut.time=false
python -m migm.train -m +experiment=ablations_cifar10 +sweep=ablation_objective objective=mse_kl,mse_kl_reverse,rollout,rollout_3
python -m migm.train -m +experiment=ablations_cifar10 +sweep=ablation_storage +storage=int8,tokens
python -m migm.train -m +experiment=ablations_cifar10 +sweep=ablation_length trainer.max_steps=125,250,1000,2000 callbacks.ema.decay=0.98
python -m migm.ablations +experiment=ablations_cifar10
mkdir -p $here/figures
cp $study/results.jsonl $here/
cp $study/ablations/*.md $study/ablations/*.csv $here/
cp $study/ablations/*.png $here/figures/
