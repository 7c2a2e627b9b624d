#!/usr/bin/env bash
# Ten minutes on a machine that does nothing else. Run from the repository's root.
set -euo pipefail
here=experiments/021-threads
python -m migm.bench +experiment=cifar10_shortcut part=waiting name=threads waiting.rounds=2 waiting.steps=15 output=$here/bench.jsonl
