# Overrides that shrink an experiment of each newer base to a CPU: sourced by run.sh and by a rehearsal of ../020-speed/run_bases.sh.
words=(base.text.hidden_size=24 base.text.intermediate_size=32 base.text.num_hidden_layers=2 base.text.num_attention_heads=2
    base.text.vocab_size=99 base.text.max_position_embeddings=12)
vq=('base.tokenizer.channels=[32,32,32]' base.tokenizer.layers=1 base.tokenizer.latent_channels=8 base.tokenizer.num_codes=64)
cpu=(base.random_weights=true base.dtype=float32 device=cpu)

halton=("${cpu[@]}" base.transformer.num_tokens=64 base.transformer.vocab_size=32 base.transformer.num_classes=1000
    base.transformer.channels=32 base.transformer.depth=2 base.transformer.num_heads=3 base.transformer.mlp_channels=64
    base.tokenizer.ch=4 'base.tokenizer.ch_mult=[1,1,2]' base.tokenizer.num_res_blocks=1 base.tokenizer.z_channels=8
    base.tokenizer.n_embed=32 base.tokenizer.norm_groups=2 shortcut.num_heads=2)
amused=("${cpu[@]}" "${words[@]}" "${vq[@]}" base.text.projection_dim=16 base.height=32 base.width=32
    base.transformer.hidden_size=32 base.transformer.num_hidden_layers=2 base.transformer.num_attention_heads=2
    base.transformer.intermediate_size=48 base.transformer.block_out_channels=32 base.transformer.block_num_heads=2
    base.transformer.num_res_blocks=1 base.transformer.encoder_hidden_size=24 base.transformer.cond_embed_dim=16
    base.transformer.micro_cond_encode_dim=8 base.transformer.vocab_size=72 base.transformer.codebook_size=64
    shortcut.mlp_channels=64)
meissonic=("${cpu[@]}" "${words[@]}" "${vq[@]}" base.text.projection_dim=32 base.native_height=null base.height=32 base.width=32
    base.transformer.num_attention_heads=2 base.transformer.attention_head_dim=16 base.transformer.num_layers=1
    base.transformer.num_single_layers=2 base.transformer.joint_attention_dim=24 base.transformer.pooled_projection_dim=32
    'base.transformer.axes_dims_rope=[4,6,6]' base.transformer.vocab_size=70 base.transformer.codebook_size=64
    shortcut.num_heads=2 shortcut.mlp_channels=64)
mmada=("${cpu[@]}" base.height=32 base.width=32 base.vocab_size=32 base.code_offset=40 base.tokenizer.bits=5
    'base.tokenizer.encoder={channels: 32, factors: [1,1,2], blocks: [2,1,1]}'
    'base.tokenizer.decoder={channels: 32, factors: [1,1,1], blocks: [1,2,1]}'
    base.transformer.d_model=32 base.transformer.n_heads=2 base.transformer.n_layers=2 base.transformer.mlp_hidden_size=48
    base.transformer.embedding_size=80 base.markers.mask=36 base.markers.bos=30 base.markers.eos=31 base.markers.soi=32
    base.markers.eoi=33 base.markers.t2i=34 base.markers.pad=35 sampling.draw.dtype=float32 sampling.select.dtype=float32)
