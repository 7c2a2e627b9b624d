#!/usr/bin/env bash
# On a CUDA device: full step, shortcut step, overhead and whole runs of Tables 1 and 2 at real shapes. From the repository's root.
set -euo pipefail
here=experiments/020-speed
python -m migm.bench +experiment=maskgit_shortcut base.random_weights=true output=$here/bench.jsonl
python -m migm.bench +experiment=dimoo_shortcut base.random_weights=true output=$here/bench.jsonl
