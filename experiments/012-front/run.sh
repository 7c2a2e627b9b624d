#!/usr/bin/env bash
# The search on the small base, from the repository's root: 12 minutes on 2 quiet CPU cores. Started again it goes on.
set -euo pipefail
here=experiments/012-front
python -m migm.tune base=cifar10 name=tuned budget=12
cp outputs/tuned/front.json $here/tuned_cifar10.json
cp outputs/tuned/tune/table.md $here/tuned_cifar10.md
cp outputs/tuned/tune/front.png $here/tuned_cifar10.png
