"""What tests compose is what Hydra alone composes, and follows every change of a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick_hydra
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from migm.config.building import conf_path

CONF = conf_path()


def one(command: str, *overrides: str, folder: str | Path = CONF) -> DictConfig:
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(command, list(overrides), return_hydra_config=True)


def flags(cfg: Any, path: str = "") -> Iterator[tuple[Any, ...]]:
    """Every node of a config in its order, with its flags and kind."""
    yield path, cfg._metadata.flags, type(cfg)
    if isinstance(cfg, DictConfig) and not (cfg._is_none() or cfg._is_missing() or cfg._is_interpolation()):
        for key in cfg:
            yield from flags(cfg._get_node(key), f"{path}.{key}")


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("train", []),
        ("train", ["+experiment=tiny_shortcut", "seed=3", "base=dimoo_tiny", "~callbacks.progress"]),
        ("evaluate", ["+experiment=cifar10_quick", "metric=[fd_cifarnet,class_agreement]", "+points.reuse=[[6,2]]"]),
        ("generate", ["accelerator=taylorseer", "data/storage=tokens", "+sampling.more={a: 1}"]),
        ("tune", ["+experiment=cifar10_deep", "paths.output_dir=/x y", "hydra.job.name=other"]),
    ],
)
def test_a_config_is_what_hydra_alone_composes(command, overrides, monkeypatch):
    first, again = one(command, *overrides), one(command, *overrides)
    with monkeypatch.context() as alone:
        alone.setattr(quick_hydra.FILES, "load_config", quick_hydra.PARSED)
        alone.setattr(defaults_list, "_create_interpolation_map", quick_hydra.MAPPED)
        alone.setattr(config_loader_impl, "create_defaults_list", quick_hydra.LISTED)
        alone.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", quick_hydra.MERGED)
        wanted = one(command, *overrides)
    for made in (first, again):
        assert OmegaConf.to_yaml(made) == OmegaConf.to_yaml(wanted)
        assert list(flags(made)) == list(flags(wanted))
    again.seed = 77
    assert one(command, *overrides).seed == wanted.seed  # each has a copy
    with pytest.raises(HydraException, match="seeed"):
        one(command, *overrides, "seeed=1")


def test_files_and_nodes_that_change_are_read_again(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "main.yaml").write_text("defaults: [part: a, _self_]\nown: 1\n")
    (tmp_path / "part" / "a.yaml").write_text("value: 1\n")
    assert one("main", folder=tmp_path).part.value == 1
    (tmp_path / "part" / "a.yaml").write_text("value: 2\n")
    assert one("main", folder=tmp_path).part.value == 2
    with pytest.raises(HydraException, match="part/b"):
        one("main", "part=b", folder=tmp_path)
    (tmp_path / "part" / "b.yaml").write_text("value: 3\n")
    assert one("main", "part=b", folder=tmp_path).part.value == 3
    (tmp_path / "part" / "b.yaml").unlink()
    with pytest.raises(HydraException, match="part/b"):
        one("main", "part=b", folder=tmp_path)
    for value in (4, 5):
        ConfigStore.instance().store(group="part", name="stored", node={"value": value})
        assert one("main", "part=stored", folder=tmp_path).part.value == value
    del ConfigStore.instance().repo["part"]
