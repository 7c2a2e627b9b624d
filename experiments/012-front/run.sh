#!/usr/bin/env bash
# Searches of study 012, from the repository's root; each goes on where it stopped, and may be named alone.
#   bash experiments/012-front/run.sh tuned           small base by kernel distance, 12 minutes on 2 quiet CPU cores
#   bash experiments/012-front/run.sh deep            deep base, 5,000 images, three seed sets: 8 minutes on a GPU
# Trainings and their tables: run_ablation.sh. TINY=1 rehearses `deep` on a CPU, with few images of the small base.
set -euo pipefail
here=experiments/012-front
outputs=${OUTPUTS:-outputs}
read -ra more <<< "${MORE:-}"                       # further keys of every command
search() {                                          # name, then keys of migm.tune
    local name=$1; shift
    python -m migm.tune "name=$name" "paths.output_dir=$outputs" "$@" "${more[@]}"
    if [[ ${TINY:-} ]]; then return; fi
    cp "$outputs/$name/front.json" "$here/$name.json"
    cp "$outputs/$name/tune/table.md" "$here/$name.md"
    cp "$outputs/$name/tune/front.png" "$here/$name.png"
}
tuned() { search tuned_cifar10 base=cifar10 budget=12; }
deep() {
    local size=(base=cifar10_deep budget=8 'rungs=[1000,5000]' verify_images=5000 evalset.batch_size=1000 'latency=[batch200_amortised]')
    if [[ ${TINY:-} ]]; then
        size=(base=cifar10 device=cpu budget=4 'rungs=[10,20]' verify_images=20 evalset.batch_size=10 'latency=[batch10_amortised]'
            'shares=[0.33]' finalists=1 '~methods' '+methods={reuse: {}, taylorseer: {}}')
    fi
    search tuned_cifar10_deep evalset=cifar10_5k 'seed_sets=[1001,1002]' 'metric=[fd_cifarnet,class_agreement]' "${size[@]}"
}

(($#)) || set -- tuned
for part in "$@"; do
    case $part in
        tuned | deep) $part ;;
        *) echo "part $part must be tuned or deep" >&2; exit 2 ;;
    esac
done
python $here/volumes.py
