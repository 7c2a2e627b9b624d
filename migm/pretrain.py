"""`python -m migm.pretrain`: train feature net, tokenizer and base from the photos, and bundle them."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from migm.config.building import build, conf_path, load
from migm.config.roots import PretrainConfig
from migm.runtime.errors import UserError, command
from migm.runtime.extras import in_checkout
from migm.runtime.writing import writing


@hydra.main(config_path=conf_path(), config_name="pretrain", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Run the stages in order; a second start goes on where the first stopped."""
    config = load(cfg, PretrainConfig)
    folder, assets = config.pretrain["folder"], config.pretrain["assets"]
    refuse_package(Path(assets))
    shown = f"pretrain.folder={folder}", f"paths.assets={assets}"
    with writing(folder, shown[0], folder=True), writing(assets, shown[1], folder=True):
        precision = {"dtype": "float32", "tokenizer_dtype": "float32"}  # what is trained
        base = build({**config.base, "random_weights": True, **precision})
        files = {name: config.pretrain[name] or config.base.get(name) for name in ("weights", "tokenizer_weights")}
        build({**config.pretrain, **files}).run(config.stages, base, build(config.runtime))


def refuse_package(assets: Path) -> None:
    """Raise a UserError for the folder of an installed package, which only its installer may change."""
    if not in_checkout() and Path(__file__).resolve().parent in (assets.resolve(), *assets.resolve().parents):
        raise UserError(
            f"paths.assets={assets} is inside the installed package; say where to write by paths.assets=<folder>"
        )


if __name__ == "__main__":
    main()
