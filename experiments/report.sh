#!/usr/bin/env bash
# experiments/report.html: studies 001, 002 and 006 in one page, some methods of 002 and 006 with images. Their shortcuts have to be
# in outputs/ (run.sh of each). Two minutes on 2 CPU cores. Run from the repository's root.
set -euo pipefail
page=outputs/report_example
few="cost=false evalset.num_images=20 evalset.batch_size=20 evalset.seed_sets=[1] metric=[class_agreement] paths.output_dir=$page"
rm -rf $page
for study in 001-cifar10-shortcut 002-rivals-cifar10 006-dimoo-tiny; do
    mkdir -p $page/$study/images && cp experiments/$study/results.jsonl $page/$study/
done
for pair in rivals_cifar10:002-rivals-cifar10 dimoo_tiny:006-dimoo-tiny; do
    name=${pair%%:*} study=${pair##*:}
    mkdir -p "$page/$name" && cp outputs/"$name"/*.safetensors "$page/$name/"
    # shellcheck disable=SC2086  # few are several words
    python -m migm.evaluate +experiment="$name" $few
    for point in vanilla_4 vanilla_8 vanilla_16 reuse_16,4 shortcut_16,4 foca_16,5 recap_16,4 taylorseer_module_16,6; do
        cp "$page/$name/images/$point"*.png $page/"$study"/images/ 2>/dev/null || true    # not every study has each
    done
    rm -r "${page:?}/$name"
done
python -m migm.report baseline="vanilla 16" folder=$page/page \
    results="[$page/001-cifar10-shortcut/results.jsonl,$page/002-rivals-cifar10/results.jsonl,$page/006-dimoo-tiny/results.jsonl]"
cp $page/page/index.html experiments/report.html
