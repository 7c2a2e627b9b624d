"""Softmax attention by the fastest exact kernels."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# cuDNN makes a plan for every new number of keys, which takes longer than attention to a few new tokens saves
# (experiments/020-speed).
FEW_KEYS = 1024
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax attention over (b, heads, t, head channels); `mask` (b, 1, 1, keys) is True where a key counts.

    The result is zero where no key counts. Kernels never get such a mask, since CUDA's fused kernels give other values
    for it. For bfloat16 on CPUs torch's fused kernel is about half as fast as two matrix products.
    """
    if mask is None:
        return _attended(q, k, v, None, dropout)
    some = mask.any(-1, keepdim=True)
    return _attended(q, k, v, mask | ~some, dropout).masked_fill(~some, 0)


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend with a fused kernel, except where it is slower or there are no keys; each row has a key that counts."""
    num_keys = k.shape[-2]
    if num_keys and (q.device.type != "cpu" or q.dtype != torch.bfloat16):
        few = q.device.type == "cuda" and num_keys < FEW_KEYS and num_keys != q.shape[-2]
        with sdpa_kernel(WITHOUT_PLANS) if few else nullcontext():
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.dropout(scores.softmax(-1), dropout, train=dropout > 0) @ v
