#!/usr/bin/env bash
# The analyses on both bundled bases. Run from the repository's root. The shortcuts are those of studies 001 and 006:
# what is trained already is not trained again.
set -euo pipefail
here=experiments/004-analyses
python -m migm.train +experiment=cifar10_study evaluate=false
python -m migm.train +experiment=dimoo_tiny evaluate=false
python -m migm.analyse +experiment=cifar10_study points.vanilla=[16,4] points.reuse=[[16,4]] '~points.no_cross_attention' \
  points.shortcut=[[16,4],[16,2]] analyses.images.repeats=0 folder=$here/cifar10
python -m migm.analyse +experiment=dimoo_tiny points.vanilla=[16,4] points.reuse=[[16,4]] points.shortcut=[[16,4],[16,2]] \
  analyses.images.repeats=0 folder=$here/dimoo_tiny
