"""`python -m migm.collect`: collect trajectories of the vanilla base, or import, export or publish trajectories."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from migm.config.building import build, conf_path, load
from migm.config.roots import CollectConfig
from migm.runtime.console import Plain
from migm.runtime.distributed import join
from migm.runtime.errors import command
from migm.runtime.owned import refuse_filled
from migm.runtime.writing import refuse_unwritable, writing
from migm.sampling.sampler import Sampler
from migm.trajectories.collect import follow, header, refuse_unwritable_store, stored
from migm.trajectories.tars import export_tars, import_tars


@hydra.main(config_path=conf_path(), config_name="collect", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config, build its parts, then import or collect, export and publish."""
    config = load(cfg, CollectConfig)
    data = build(config.data)
    refuse_unwritable_store(data)
    if config.export_to:
        refuse_unwritable(config.export_to, f"export_to={config.export_to}", folder=True)
    if config.import_from or config.export_to or config.publish_to:
        stored(data)
    sampler = Sampler(build(config.base), build(config.sampling), runtime=build(config.runtime))
    base = sampler.base
    join(base.device)
    if config.export_to:
        refuse_filled(Path(config.export_to), "export_to")  # checked before hours of collecting
    if config.import_from:
        with writing(data.folder, f"data.folder={data.folder}", folder=True):
            store = data.store(header(sampler, data, config.seed))
            options = (data.shard_images, stored(data).kept, data.tars)
            follow("import", import_tars(config.import_from, store, base, *options))
        Plain().print(f"{len(store)} trajectories in {data.folder}")
    else:
        store = data.storage.prepare(sampler, data, config.seed, config.trainer["max_steps"])
    if config.export_to:
        follow("export", export_tars(store, config.export_to, base, data.tars), total=len(store))
        Plain().print(f"{len(store)} trajectories in {config.export_to}")
    if config.publish_to:
        from migm.trajectories.remote import publish  # imported here as in trajectories/source.py

        follow("publish", publish(store, config.publish_to), total=len(store))
        Plain().print(f"{len(store)} trajectories in {config.publish_to}")


if __name__ == "__main__":
    main()
