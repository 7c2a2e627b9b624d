"""Build the samplers that a search tries: an accelerator by name, N, B, and changed keys of it and of the sampling."""

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from migm.config.building import build, class_of, resolved
from migm.config.checks import check_below
from migm.config.groups import file
from migm.config.points import Chosen
from migm.config.roots import TuneConfig
from migm.runtime.errors import UserError


class CandidateParts:
    """Build samplers and metrics of one config as overrides of the command line would choose them."""

    def __init__(self, cfg: DictConfig, config: TuneConfig):
        self.config, self.runtime = config, build(config.runtime)
        # One copy for all, in which each candidate replaces both parts: a copy of the whole takes longer than a step.
        self.cfg, self.sampling = OmegaConf.create(cfg), cfg.sampling
        OmegaConf.set_struct(self.cfg, False)
        self.nodes: dict[str, DictConfig] = {}
        if name := cfg.accelerator.get("name"):
            self.nodes[name] = cfg.accelerator  # with its overrides

    def chosen(
        self, name: str, num_steps: int, num_full_steps: int | None, changes: Mapping[str, Any], variant: str
    ) -> Chosen:
        """Return the parts of a sampler; `changes` are values of keys below `accelerator.` and `sampling.`.

        Without `num_full_steps` the accelerator's policy sets B. Raises UserError for an unknown name, and for a key or
        a value that the accelerator or the sampling does not take.
        """
        if name not in self.nodes:
            self.nodes[name] = file("accelerator", name, "methods")
        cfg = self.cfg
        cfg.accelerator, cfg.sampling = self.nodes[name], self.sampling
        cfg.sampling.num_steps, cfg.sampling.num_full_steps = num_steps, num_full_steps or num_steps
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        made = [resolved(cfg.sampling, "sampling"), resolved(cfg.accelerator, "accelerator")]
        for key, part in zip(("sampling", "accelerator"), made, strict=True):
            check_below(key, part)
        sampling, accelerator = map(build, made)
        return Chosen(sampling, accelerator, variant, self.runtime)

    def own(self, key: str) -> Any:
        """Return the sampling's own value of a key, None if it has none."""
        return OmegaConf.select(OmegaConf.create(self.config.sampling), key)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics, not built: that of the search, then those of the config.

        Raises UserError if the search's depends on the number of images and rungs have different ones.
        """
        name, nodes = self.config.search_metric, dict(self.config.metric)
        if name not in nodes:
            self.cfg.metric = file("metric", name, "search_metric")
            found = resolved(self.cfg.metric, "search_metric")
            check_below("metric", found)
            if name not in found:
                raise UserError(f"search_metric={name} holds {', '.join(found) or 'no metric'}; choose a file with one")
            nodes[name] = found[name]
        if len(self.config.rungs) > 1 and not getattr(class_of(nodes[name]), "unbiased", False):
            raise UserError(
                f"search_metric={name}: its value depends on the number of images, so that the few of a first rung "
                "mislead; choose kd_cifarnet, or a mean over images such as class_agreement, clip_score, image_reward, "
                "or a single rung such as 'rungs=[500]' with one of seed_sets"
            )
        return [nodes.pop(name), *nodes.values()]

    def base_name(self) -> str:
        """Return the name of the base's file, or of its class outside a command."""
        chosen = HydraConfig.get().runtime.choices.get("base") if HydraConfig.initialized() else None
        return str(chosen or self.config.base["_target_"].rpartition(".")[2])
