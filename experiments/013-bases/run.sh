#!/usr/bin/env bash
# Errors of a shortcut after 200 steps and of reuse on the newer bases at tiny size with random weights: a few minutes.
# From the repository's root: bash experiments/013-bases/run.sh > experiments/013-bases/table.md. OUT is where runs are kept.
set -uo pipefail
source "${BASH_SOURCE[0]%/*}/tiny.sh"
out=${OUT:-outputs/013-bases}
learn=(objective=mse optimizer=muon lr_schedule=trapezoid callbacks=default '~callbacks.ema' data/storage=features data.num_images=96
    data.num_val_images=16 data.collect_batch_size=16 data.shard_images=32 data.batch_size=32 trainer.max_steps=200
    trainer.precision=32-true trainer.enable_progress_bar=false '~callbacks.progress' evaluate=false "paths.output_dir=$out")
failed=0
echo "| base | steps, full ones | error of the shortcut | of reuse | ratio |"
echo "|---|---|---:|---:|---:|"
err() { # <name> <num_steps> <num_full_steps> <overrides>: a training, and the last errors of its log
    local log=$out/$1_shortcut/train/version_0/metrics.csv name=$1 n=$2 b=$3
    shift 3
    python -m migm.train "+experiment=${name}_shortcut" "sampling.num_steps=$n" "sampling.num_full_steps=$b" "$@" "${learn[@]}" >&2 ||
        { failed=1; echo "failed: $name" >&2; }
    [[ ! -f $log ]] || awk -F, -v row="| $name | $n, $b" '
        { sub(/\r$/, "") }
        NR == 1 { for (i = 1; i <= NF; i++) { if ($i == "val/feature_mse") ours = i; if ($i == "val/reuse_mse") reuse = i } }
        NR > 1 && $ours != "" { a = $ours; c = $reuse }
        END { printf "%s | %.4f | %.4f | %.2f |\n", row, a, c, a / c }' "$log"
}

err halton 8 3 "${halton[@]}"
err amused 6 2 base=amused_512 "${amused[@]}"
err meissonic 8 3 "${meissonic[@]}"
err mmada 8 3 "${mmada[@]}"
exit $failed
