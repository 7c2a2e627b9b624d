"""The small VQ tokenizer between uint8 images and token grids."""

import copy
import subprocess
import sys

import pytest
import torch

from migm.bases.tokenizer import Codebook, ConvVQ, ResidualConv


@pytest.fixture(scope="module")
def vq():
    torch.manual_seed(0)
    net = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1).eval()
    torch.nn.init.normal_(net.quantize.embedding.weight)  # the default is too small to show in 8-bit pixels
    return net


def random_images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def random_tokens(*shape):
    return torch.randint(0, 24, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def fine():
    """A tokenizer of stride 2."""
    torch.manual_seed(0)
    net = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1, stride=2).eval()
    torch.nn.init.normal_(net.quantize.embedding.weight)
    return net


@pytest.mark.parametrize("net", ["vq", "fine"])
@pytest.mark.parametrize("grid", [(4, 4), (2, 4)])
def test_shapes_and_ranges_of_both_directions(request, net, grid):
    vq, (rows, columns) = request.getfixturevalue(net), grid
    images = vq.to_images(random_tokens(3, rows * columns), grid)
    assert vq.stride == {"vq": 4, "fine": 2}[net]
    assert images.shape == (3, 3, vq.stride * rows, vq.stride * columns)
    assert images.dtype == torch.uint8
    tokens = vq.to_tokens(images)
    assert tokens.shape == (3, rows * columns)
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < 24


def test_tokens_are_the_nearest_codes_in_row_major_order(vq):
    vq = copy.deepcopy(vq)
    images = random_images(2, 3, 8, 32)
    codes = vq.quantize.embedding.weight
    with torch.no_grad():
        latents = vq.encoder(images.float() / 127.5 - 1)
        # Codes among the latents themselves: far from an untrained encoder's, all would share one nearest code.
        codes.copy_(latents.permute(0, 2, 3, 1).reshape(-1, 4)[:24])
    tokens = vq.to_tokens(images)
    assert len(tokens.unique()) == 24
    for y in range(2):
        for x in range(8):
            distance = (latents[:, None, :, y, x] - codes).square().sum(-1)
            assert torch.equal(tokens[:, 8 * y + x], distance.argmin(-1))


def test_decoding_an_image_does_not_depend_on_its_batch(vq):
    tokens = random_tokens(5, 16)
    together = vq.to_images(tokens, (4, 4))
    assert torch.equal(together, vq.to_images(tokens, (4, 4)))
    assert together.float().std() > 1
    assert not torch.equal(together[0], together[1])
    for i in range(5):
        alone = vq.to_images(tokens[i : i + 1], (4, 4))[0]
        # Convolutions may sum in another order at another batch size: one grey level where rounding flips.
        assert (alone.int() - together[i].int()).abs().max() <= 1


def test_pixels_beyond_the_range_are_clamped_not_wrapped(vq):
    vq = copy.deepcopy(vq)
    with torch.no_grad():
        vq.decoder[-1].bias.copy_(torch.tensor([100.0, -100.0, 0.0]))
    red, green, _ = vq.to_images(random_tokens(1, 16), (4, 4))[0]
    assert (red == 255).all()
    assert (green == 0).all()


def test_encoding_then_decoding_can_run_in_bfloat16(vq):
    wide = vq.to_images(random_tokens(2, 16), (4, 4))
    narrow = copy.deepcopy(vq).bfloat16()
    images = narrow.to_images(random_tokens(2, 16), (4, 4))
    assert (images.float() - wide.float()).abs().mean() < 3
    assert narrow.to_tokens(images).dtype == torch.int64


def test_a_token_of_stride_2_shows_nearby_alone(fine):
    """Its place in the image is row-major, and its reach the 3x3 convolutions' few pixels."""
    tokens = random_tokens(1, 256)
    other = tokens.clone()
    other[0, 16 * 3 + 12] = (other[0, 16 * 3 + 12] + 1) % 24
    changed = (fine.to_images(tokens, (16, 16)) != fine.to_images(other, (16, 16))).any(1)[0].nonzero()
    assert (changed - torch.tensor([6, 24])).abs().max() <= 16
    assert (changed.float().mean(0) - torch.tensor([6.5, 24.5])).abs().max() < 2


@pytest.mark.parametrize("depth", [1, 3])
def test_depth_adds_a_block_to_the_encoder_and_two_to_the_decoder_of_stride_2(depth):
    net = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=depth, stride=2)
    blocks = [sum(isinstance(part, ResidualConv) for part in half) for half in (net.encoder, net.decoder)]
    assert blocks == [depth, 2 * depth]


def test_the_codebook_equals_that_of_diffusers():
    from diffusers.models.autoencoders.vae import VectorQuantizer

    torch.manual_seed(0)
    reference = VectorQuantizer(24, 4, beta=0.25, legacy=False)
    torch.manual_seed(0)
    codebook = Codebook(24, 4)
    assert torch.equal(codebook.embedding.weight, reference.embedding.weight)
    torch.nn.init.normal_(codebook.embedding.weight)
    reference.load_state_dict(codebook.state_dict())
    latents, target = torch.randn(2, 2, 4, 3, 5).unbind()
    results = []
    for net in (codebook, reference):
        x = latents.clone().requires_grad_()
        codes, loss, ids = net(x)
        (loss + (codes - target).square().sum()).backward()
        ids = ids if net is codebook else ids[2].view(2, -1)
        results.append((codes.detach(), loss.detach(), ids, x.grad, net.embedding.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_base_without_a_model_of_diffusers_does_not_import_diffusers():
    code = "import sys, migm.bases.footprint, migm.bases.tokenizer; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
