#!/usr/bin/env bash
# The whole study; every line goes on where it stopped. Run from the repository's root.
# The shortcut as it is (R 2, D 1, MSE, features in bfloat16, 500 steps) is a trial of the first sweep, left out of the others.
# What a step costs depends on the shortcut's shape alone: it is measured where that changes, once.
set -euo pipefail
here=experiments/003-ablations-cifar10
study=outputs/ablations_cifar10
train() { python -m migm.train -m +experiment=ablations_cifar10 "$@"; }
python -m migm.evaluate +experiment=ablations_cifar10
for seeds in "seed=0" "seed=1,2 cost=false"; do
  train +sweep=ablation_rd $seeds
  train +sweep=ablation_attention shortcut.cross_attention=false shortcut.time=true $seeds
  train +sweep=ablation_attention shortcut.cross_attention=true shortcut.time=false $seeds
done
train +sweep=ablation_objective objective=mse_kl,mse_kl_reverse,rollout,rollout_3 cost=false
train +sweep=ablation_storage +storage=int8,tokens cost=false
train +sweep=ablation_length trainer.max_steps=125,250,1000,2000 callbacks.ema.decay=0.98 cost=false
python -m migm.ablations +experiment=ablations_cifar10
mkdir -p $here/figures
cp $study/results.jsonl $here/
cp $study/ablations/*.md $study/ablations/*.csv $here/
cp $study/ablations/{rd,length}_{feature_mse,fd_cifarnet_500}.png $here/figures/
sed -i.bak -e '/<!-- table -->/,/<!-- \/table -->/{//!d;}' -e "/<!-- table -->/r $here/ablations.md" $here/README.md
rm -f $here/README.md.bak
