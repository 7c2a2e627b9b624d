"""Lets Hydra compose configs several times as fast: the tests compose thousands, of the same few chosen files.

Installed by tests/shared_fixtures.py. A file is parsed once as long as it stays as it is. The files that a command
chooses are found and merged once, as long as no file of their folders and nothing in the ConfigStore changes; values of
the command line are set in a copy, by Hydra itself. What a test starts as another process composes as in production,
and tests/test_quick_hydra.py compares the two ways.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

Plugins.instance()  # knows the classes of sources from here on
FILES: Any = SourcesRegistry.instance().resolve("file")
PARSED, MAPPED = FILES.load_config, defaults_list._create_interpolation_map
LISTED, MERGED = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
_parsed: dict[tuple[Any, ...], ConfigResult] = {}
_listed: dict[Any, DefaultsList] = {}
_seen: dict[int, Any] = {}
_merged: dict[int, DictConfig] = {}  # by the list of `_listed`, which stays


def parsed_once(self: Any, config_path: str) -> ConfigResult:
    """A copy of what a file says, which Hydra takes the defaults out of."""
    path = os.path.join(self.path, self._normalize_file_name(config_path))
    if not os.path.exists(path):
        return PARSED(self, config_path)
    state = os.stat(path)
    key = self.provider, self.path, path, state.st_ino, state.st_size, state.st_mtime_ns
    if key not in _parsed:
        _parsed[key] = PARSED(self, config_path)
    return copy.deepcopy(_parsed[key])


def mapped_if_asked(overrides: Overrides, defaults: list[InputDefault], self_added: bool) -> DictConfig:
    """The choices so far, which `${...}` in a list of defaults refers to; none where nothing does."""
    asked = any(default.is_interpolation() for default in defaults)
    return MAPPED(overrides, defaults, self_added) if asked else DictConfig({})


def state_of(folder: str) -> Iterator[tuple[Any, ...]]:
    """Every file below a folder, with what changes when it is written."""
    with os.scandir(folder) as entries:
        for entry in entries:
            state = entry.stat()
            yield entry.path, state.st_ino, state.st_size, state.st_mtime_ns
            if entry.is_dir():
                yield from state_of(entry.path)


def nodes_of(stored: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every name of a ConfigStore, with what stands there."""
    for name, node in stored.items():
        _seen[id(node)] = node  # no other has its number as long as it is here
        yield name, id(node)
        if isinstance(node, dict):
            yield from nodes_of(node)


def listed_once(
    repo: IConfigRepository,
    config_name: str | None,
    overrides_list: list[Override],
    prepend_hydra: bool,
    skip_missing: bool,
) -> DefaultsList:
    """The files that a config is made of; values that are set in it afterwards change none of them."""
    values = Overrides(repo, overrides_list).config_overrides
    choices = tuple(o.input_line for o in overrides_list if not any(o is value for value in values))
    sources = [(source.scheme(), source.path, source.provider) for source in repo.get_sources()]
    folders = [path for scheme, path, _ in sources if scheme == "file" and os.path.isdir(path)]
    state = (*(entry for folder in folders for entry in state_of(folder)), *nodes_of(ConfigStore.instance().repo))
    key = config_name, choices, prepend_hydra, skip_missing, tuple(sources), hash(state)
    if key not in _listed:
        _listed[key] = LISTED(repo, config_name, overrides_list, prepend_hydra, skip_missing)
    return replace(_listed[key], config_overrides=values)


def merged_once(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
    """A copy of what these files say together."""
    if id(defaults) not in _merged:
        _merged[id(defaults)] = MERGED(self, defaults, repo)
    return copy.deepcopy(_merged[id(defaults)])


def install() -> None:
    """Let Hydra compose so in this process, from here on."""
    FILES.load_config, defaults_list._create_interpolation_map = parsed_once, mapped_if_asked
    config_loader_impl.create_defaults_list = listed_once
    ConfigLoaderImpl._compose_config_from_defaults_list = merged_once
