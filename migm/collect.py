"""`python -m migm.collect`: run the vanilla base and store its trajectories, or carry those of the released code."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from migm.config.building import build, conf_path, load
from migm.config.roots import CollectConfig
from migm.runtime.console import Plain
from migm.runtime.distributed import join
from migm.runtime.errors import UserError, command
from migm.runtime.owned import refuse_filled
from migm.runtime.writing import refuse_unwritable, writing
from migm.trajectories.collect import (
    announce_online,
    collect,
    follow,
    header,
    refuse_unwritable_store,
    trajectory_sampling,
)
from migm.trajectories.tars import export_tars, import_tars


@hydra.main(config_path=conf_path(), config_name="collect", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config, build, collect."""
    config = load(cfg, CollectConfig)
    refuse_unwritable_store(config.data)
    if config.export_to:
        refuse_unwritable(config.export_to, f"export_to={config.export_to}", folder=True)
    base, sampling, data = build(config.base), build(config.sampling), build(config.data)
    join(base.device)
    described = trajectory_sampling(config.sampling)
    if data.storage == "online":
        if config.import_from or config.export_to or config.publish_to:
            raise UserError(
                "data.storage=online has no store; for import_from, export_to and publish_to choose features or tokens"
            )
        announce_online(base, sampling, data, config.trainer["max_steps"])
        return
    if config.export_to:
        refuse_filled(Path(config.export_to), "export_to")  # before hours of collecting
    if config.import_from:
        with writing(data.folder, f"data.folder={data.folder}", folder=True):
            store = data.store(header(base, sampling, data, config.seed, described))
            follow("import", import_tars(config.import_from, store, base, data.shard_images, data.kept))
        Plain().print(f"{len(store)} trajectories in {data.folder}")
    else:
        store = collect(base, sampling, data, config.seed, described, config.trainer["max_steps"])
    if config.export_to:
        follow("export", export_tars(store, config.export_to, base), total=len(store))
        Plain().print(f"{len(store)} trajectories in {config.export_to}")
    if config.publish_to:
        from migm.trajectories.remote import publish  # see TrajectoryData.store

        follow("publish", publish(store, config.publish_to), total=len(store))
        Plain().print(f"{len(store)} trajectories in {config.publish_to}")


if __name__ == "__main__":
    main()
