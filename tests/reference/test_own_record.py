"""This project's own recorded run comes out again; it needs no files from elsewhere."""

import torch
from record_own import parts, read, run


def test_the_recorded_run_comes_out_again():
    recorded = read()
    models = parts()
    for module, prefix in zip(models, ("base.", "shortcut."), strict=True):
        own = {name.removeprefix(prefix): value for name, value in recorded.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    found = run(*models)
    assert torch.equal(found["tokens"], recorded["tokens"])
    assert torch.equal(found["order"], recorded["order"])
    torch.testing.assert_close(found["features"], recorded["features"], rtol=2e-5, atol=2e-5)
