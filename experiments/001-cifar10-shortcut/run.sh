#!/usr/bin/env bash
# The whole study; every line goes on where it stopped. Run from the repository's root.
set -euo pipefail
here=experiments/001-cifar10-shortcut
study=outputs/cifar10_study
mkdir -p $study
if [ -f $here/results.jsonl ] && [ ! -f $study/results.jsonl ]; then cp $here/results.jsonl $study/; fi
python -m migm.train +experiment=cifar10_study evaluate=false
python -m migm.train +experiment=cifar10_study evaluate=false shortcut.cross_attention=false name=cifar10_study_no_cross_attention
python -m migm.bench +experiment=cifar10_study '~points' 'batch_sizes=[100]'
python -m migm.evaluate +experiment=cifar10_study
python -m migm.report +experiment=cifar10_study baseline="vanilla 16"
cp $study/results.jsonl $study/bench.jsonl $here/
cp $study/report/table.md $study/report/equal_time.md $here/
mkdir -p $here/figures && cp $study/report/{fd_cifarnet_5000_by_ffe,{fd_cifarnet,class_agreement}_5000_by_time}.png $here/figures/
