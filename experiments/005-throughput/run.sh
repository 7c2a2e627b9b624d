#!/usr/bin/env bash
# The whole study: 2 GB of disk while it runs, nothing left but the records. Run from the repository's root.
set -euo pipefail
here=experiments/005-throughput
python -m migm.bench +experiment=cifar10_shortcut part=loading name=throughput_cifar10 num_threads=1 loading.batches=60
python -m migm.bench +experiment=maskgit_shortcut part=loading name=throughput_maskgit num_threads=1 base.random_weights=true \
    data.shard_images=8 loading.num_images=16 loading.tar_images=8 loading.online_images=1 loading.batches=6 loading.base_batches=1
for base in cifar10 maskgit; do
    cp outputs/throughput_$base/bench.jsonl $here/$base.jsonl
    cp outputs/throughput_$base/loading.png $here/$base.png
done
