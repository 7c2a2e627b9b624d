"""Di[M]O's recorded runs in one step, on Meissonic and on MaskGIT, through migm's loop."""

import json

import pytest
import torch
from recorded_meissonic import recorded_meissonic, speaking
from tiny_parts import recorded_transformer

from migm.bases.base import image_rows
from migm.bases.dimo import CODES, EMBEDDED, MASKED, DiMOMaskGIT, DiMOMeissonic
from migm.bases.tokenizer import ConvVQ
from migm.sampling.draw import GumbelMax, Likeliest
from migm.sampling.loop import Sampling
from migm.sampling.noise import SELECT
from migm.sampling.sampler import VANILLA, Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Random

SETTINGS = ["config", "cli", "plain", "filtered"]


class Recorded:
    """The recorded random numbers of one setting."""

    def __init__(self, tensors, name, vocab_size):
        self.part = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
        self.vocab_size = vocab_size

    def uniform(self, purpose, step, positions, width=None):
        if purpose == CODES:
            return (self.part["codes"].double() + 0.5) / self.vocab_size
        if purpose == MASKED:
            return self.part["uniform"]
        if purpose == SELECT:
            return torch.zeros(positions.shape)
        assert purpose == EMBEDDED
        return torch.special.ndtr(self.part["noise"].double())

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        e = self.part["exponential"].double()
        return -e.gather(1, positions[..., None].expand(-1, -1, width)).log().to(dtype)


def close(ours, recorded):
    assert ours.shape == recorded.shape
    assert float((ours - recorded).abs().max()) <= 2e-5 * float(recorded.abs().max())


def begun(base, tensors, meta, name, inputs):
    """A generation of one setting after its only step: the record, its branch, its recorded part."""
    facts = json.loads(meta[name])
    noise = Recorded(tensors, name, base.spec.vocab_size)
    draw = Likeliest(GumbelMax(), facts["temperature"], facts["top_k"], facts["top_p"] or 1.0)
    sampling = Sampling(1, 1, CosineFloor(), draw, Random())
    generation = Sampler(base, sampling, VANILLA).start(inputs, noise)
    mask, part = int(meta["mask_id"]), noise.part
    ours = generation.tokens.where(generation.tokens < base.spec.vocab_size, mask)
    assert torch.equal(ours, part["tokens_in"])
    assert ((ours == mask).sum(1) == facts["masked"]).all()
    record = generation.step()
    assert torch.equal(generation.result(), part["tokens"])
    assert generation.masked.shape[1] == 0
    return record, generation.branches[0], part


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_on_meissonic_is_the_recorded_one(read_vector, tmp_path, name):
    tensors, meta = read_vector("dimo_meissonic")
    facts = json.loads(meta[name])
    height, width = json.loads(meta["grid"])
    sizes = {"stride": "8", "height": 8 * height, "width": 8 * width, "crop": "[0, 0]", "aesthetic_score": 6}
    (tmp_path / "transformer").mkdir()
    base = recorded_meissonic(
        read_vector,
        tmp_path,
        {**meta, **sizes},
        kind=DiMOMeissonic,
        weights=tmp_path / "transformer",
        ratio=facts["ratio"],
        sigma=facts["sigma"],
    )
    base.micro = tensors["in.micro_conds"][0]
    base = speaking(base, {str(i): ids for i, ids in enumerate(tensors["in.text_ids"])})
    record, branch, part = begun(base, tensors, meta, name, [str(i) for i in range(len(tensors["in.text_ids"]))])
    close(branch.text, tensors["in.text"])
    close(branch.pooled, tensors["in.pooled"])
    assert torch.equal(base.timestep(record.moment)[:1], part["timestep"])
    net, grid = base.transformer, base.spec.grid
    embedded = net.embed(net.cells(part["tokens_in"], grid))
    close(embedded, net.cells(part["embed"], grid))
    blend = base.blend(branch)
    close(net.down(embedded if blend is None else blend(embedded)), part["down"])
    q, positions = tensors["in.text_ids"].shape[1], torch.arange(base.spec.num_tokens).expand(len(branch.rows), -1)
    close(record.features[0][:, q:], part["inner"])
    close(net.cells(part["feat"], grid), net.mlm_layer.inner(net.up(record.features[0][:, q:])))
    logits = base.head(image_rows(record.features[0], branch), positions)
    close(logits, part["logits"])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_on_maskgit_is_the_recorded_one(read_vector, name):
    tensors, meta = read_vector("dimo_maskgit")
    facts = json.loads(meta[name])
    transformer = recorded_transformer(tensors, meta, mask_logit=True)
    vq = ConvVQ(num_codes=transformer.vocab_size, code_channels=4, channels=8, depth=1)
    settings = {"random_weights": True, "dtype": "float32", "device": "cpu"}
    base = DiMOMaskGIT(transformer=transformer, tokenizer=vq, ratio=facts["ratio"], sigma=facts["sigma"], **settings)
    seen = []
    transformer.first_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    record, branch, part = begun(base, tensors, meta, name, tensors["in.labels"])
    close(seen[0], part["embed"])
    close(record.features[0], part["feat"])
    positions = torch.arange(base.spec.num_tokens).expand(len(branch.rows), -1)
    close(base.head(image_rows(record.features[0], branch), positions), part["logits"])
    assert torch.equal(record.tokens, part["code"])
    assert int((record.tokens == base.spec.vocab_size).sum()) == facts["mask_drawn"]
