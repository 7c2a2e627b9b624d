#!/usr/bin/env bash
# On one CUDA card of 40 GB or more, under eight minutes on an H200, most important first: steps, runs, first images, memory at
# both published shapes, random weights, variants in turns in one process. From the repository's root:
#   OUT=<file> bash experiments/020-speed/run_gpu.sh           lines are appended to OUT, figures are written beside it
#   TINY=1 OUT=<file> bash experiments/020-speed/run_gpu.sh    a rehearsal: the same commands at small sizes on a CPU
# A command that fails does not stop the others. max_seconds bounds what begins; after a break the same line goes on, since
# what is measured already is kept.
set -uo pipefail
here=experiments/020-speed
out=${OUT:-$here/bench_gpu.jsonl}
unset MIGM_PROMPTS                         # the first of the bundled prompts has 100 tokens
mkdir -p "$(dirname "$out")"
dimoo=(+experiment=dimoo_shortcut accelerator=shortcut base.random_weights=true 'batch_sizes=[1]' "output=$out" resume=true)
maskgit=(+experiment=maskgit_shortcut base.random_weights=true "output=$out" resume=true)
steps=('points={vanilla: [16], shortcut: [[64,14], [64,9]]}')
few=('points={vanilla: [15], shortcut: [[32,8]]}')
large=128
if [[ ${TINY:-} ]]; then
    large=4
    dimoo+=(device=cpu base.dtype=float32 sampling.draw.dtype=float32 sampling.select.dtype=float32 base.height=128 base.width=128
        base.transformer.d_model=32 base.transformer.n_heads=2 base.transformer.n_layers=2 base.transformer.mlp_hidden_size=48
        'base.tokenizer.channels=[32,32,32,32,32]' base.tokenizer.layers=1 base.tokenizer.latent_channels=8
        base.tokenizer.num_codes=64 base.vocab_size=64)
    maskgit+=(device=cpu base.dtype=float32 base.transformer.num_tokens=64 base.transformer.vocab_size=32
        base.transformer.channels=32 base.transformer.depth=2 base.transformer.num_heads=2 base.transformer.mlp_channels=64
        base.tokenizer.ddconfig.ch=32 base.tokenizer.ddconfig.z_channels=32 base.tokenizer.ddconfig.num_res_blocks=1
        base.tokenizer.n_embed=32 base.tokenizer.embed_dim=32 shortcut.num_heads=2)
fi
failed=0
bench() { python -m migm.bench "$@" || { failed=1; echo "failed: $*" >&2; }; }

# (64,14) and (64,9) of Lumina-DiMOO in bfloat16; vanilla 64 is vanilla 16 times 4
bench "${dimoo[@]}" "${steps[@]}" repeats=2 new_lengths=2 max_seconds=120 'compare=[{}, {runtime.compile: false}]'
# MaskGIT, where starting kernels takes longer than running them, and at the batch of the paper
bench "${maskgit[@]}" "${few[@]}" 'batch_sizes=[1]' repeats=5 max_seconds=55 \
    'compare=[{}, {runtime.cuda_graphs: false}, {runtime.compile: false}, {runtime.compile: false, runtime.cuda_graphs: false}]'
bench "${maskgit[@]}" "${few[@]}" "batch_sizes=[$large]" repeats=1 max_seconds=60 \
    'compare=[{}, {runtime.compile: false, runtime.cuda_graphs: false}]'
# Lumina-DiMOO with 8-bit linears
bench "${dimoo[@]}" "${steps[@]}" repeats=2 new_lengths=1 max_seconds=85 \
    'compare=[{base.linear: fp8_rowwise, accelerator.predictor.linear: fp8_rowwise}]'
# operators, launches and host waits
bench "${maskgit[@]}" "${few[@]}" part=profile "batch_sizes=[1, $large]" max_seconds=20 \
    'compare=[{}, {runtime.compile: false, runtime.cuda_graphs: false}]'
# a training step of both recipes, from stores of features and of tokens
for kind in dimoo maskgit; do
    declare -n shape=$kind
    bench "${shape[@]}" part=train repeats=3 max_seconds=40 'compare=[{}, {runtime.compile: false}]'
done
exit $failed
