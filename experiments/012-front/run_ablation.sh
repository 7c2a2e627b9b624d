#!/usr/bin/env bash
# Every objective, network and size of the shortcut, trained alike; then their errors along true trajectories and the distances of images.
#   bash experiments/012-front/run_ablation.sh                         the small base: some hours of one CPU core
#   EXPERIMENT=cifar10_deep_shortcut bash .../run_ablation.sh PART     the deep base, for a GPU: parts of under nine minutes each
# Parts, in their order: collect, terms, networks, sizes, warm, fidelity, images. Each goes on where it stopped; without a name all run.
set -euo pipefail
here=experiments/012-front
experiment=${EXPERIMENT:-cifar10_shortcut}
read -ra more <<< "${MORE:-}"                       # further keys of every command
common=(+experiment="$experiment" "${more[@]}")
case $experiment in
    cifar10_shortcut)
        train=(data.num_images=1152 trainer.max_steps=2000)
        point='[16,4]' points='[[16,4]]' images=500 step=0 steps=16 ;;
    cifar10_deep_shortcut)
        train=(data.num_images=2112)
        point='[32,8]' points='[[32,8]]' images=5000 step=5 steps=32 ;;
    *) echo "EXPERIMENT=$experiment must be cifar10_shortcut or cifar10_deep_shortcut" >&2; exit 2 ;;
esac
outputs=${OUTPUTS:-outputs}
common+=("paths.output_dir=$outputs")
learn() { python -m migm.train -m "${common[@]}" "${train[@]}" seed=0 evaluate=false "$@"; }

collect() { python -m migm.collect "${common[@]}" "${train[0]}"; }
terms() {
    learn +sweep=ablation_terms objective=mse,guided_kl,guided_kl_soon
    learn +sweep=ablation_terms objective=guided_kl_marginal,guided_kl_rollout
}
networks() { learn +sweep=ablation_networks shortcut=anchored,history,forecast; }
sizes() {
    learn +sweep=ablation_rd shortcut.bottleneck_ratio=1 shortcut.depth=1
}
warm() {                                            # 500 steps more of the one trained by mse alone
    learn +sweep=ablation_terms group="$experiment/ablation_warm" trainer.max_steps=500 optimizer.lr=0.001 \
        warm_start="$outputs/$experiment/ablation_terms/mse_seed0/shortcut.safetensors" \
        objective=mse,guided_kl,guided_kl_soon,marginal,guided_kl_marginal,rollout
}

trained() {                                         # a file holds the shape of its network
    for folder in "$outputs/$experiment"/ablation_*/*_seed0; do
        if [[ -f $folder/shortcut.safetensors ]]; then "$1" "${folder#"$outputs/"}"; fi
    done
}
along() { [[ -f $outputs/$1/analyses/fidelity.jsonl ]] || python -m migm.analyse "${common[@]}" "name=$1" "points=$2" seed=1001 \
    analysis=fidelity analyses.fidelity.num_images=128 "analyses.fidelity.first_step=$step"; }
learned() { along "$1" "{shortcut: [$point]}"; }
fidelity() {
    trained learned
    along "$experiment/untrained" "{reuse: [$point], taylorseer_uniform: [$point]}"
    python $here/ablation.py "$outputs/$experiment"
}
images() {                                          # of the trainings named in BEST, or of all; every seed set has its own images
    measure() {
        if [[ ! ${BEST:-} || " $BEST " == *" ${1##*/} "* ]]; then drawn "$1" "{shortcut: $points}"; fi
    }
    drawn "$experiment/untrained" "{vanilla: [$steps], reuse: $points, taylorseer_uniform: $points}"
    trained measure
    python $here/ablation.py "$outputs/$experiment"
}
drawn() { python -m migm.evaluate "${common[@]}" "name=$1" "points=$2" cost=false "evalset.num_images=$images" \
    'evalset.seed_sets=[1,2,3]' 'metric=[fd_cifarnet,kd_cifarnet,class_agreement]'; }

if (($# == 0)); then set -- collect terms networks sizes warm fidelity images; fi
for part in "$@"; do
    case $part in
        collect | terms | networks | sizes | warm | fidelity | images) $part ;;
        *) echo "part $part must be one of collect, terms, networks, sizes, warm, fidelity, images" >&2; exit 2 ;;
    esac
done
