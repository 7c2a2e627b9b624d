"""Training objectives of a shortcut, in plain torch."""

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from migm.bases.base import Base, Branch, image_rows
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.errors import UserError
from migm.runtime.kinds import NotNegative, Positive
from migm.runtime.shapes import FeatureRows, Features, Scalar
from migm.sampling.guidance import Guidance
from migm.shortcuts.losses import Direction, masked_cosine, masked_mse
from migm.training.guided import Sites, totals
from migm.training.rollout import Rollout, Situation, predict
from migm.training.terms.squared_error import SquaredError
from migm.training.terms.term import FeatureTerm, GuidedTerm, PredictedRows, Term
from migm.training.terms.token_kl import TokenKL
from migm.trajectories.dataset import Pairs

LossAndLog = tuple[Scalar, dict[str, Scalar]]
ALWAYS = ("feature_mse", "reuse_mse", "feature_cosine", "rows")  # logged whatever the terms are


class Objective(Protocol):
    def __call__(self, shortcut: nn.Module, base: Base, batch: Pairs, iteration: int = 0) -> LossAndLog: ...


@runtime_checkable
class CompiledObjective(Protocol):
    """An objective whose functions can be compiled: `fast` is set by the training's runtime."""

    fast: Fast


@runtime_checkable
class GuidedObjective(Protocol):
    """An objective that uses guided logits: `guidance` is set to that of the trajectories' sampler.

    With `together`, both guidance halves of an image at a step have to be in one batch.
    """

    guidance: Guidance | None
    together: bool


def made_ready(objective: Objective, guidance: Guidance | None, fast: Fast = as_it_is) -> Objective:
    """Return the objective after setting what a training knows and its config does not say."""
    if isinstance(objective, CompiledObjective):
        objective.fast = fast
    if isinstance(objective, GuidedObjective):
        objective.guidance = guidance
    return objective


class Mixture:
    """Weighted sum of named `terms`, each a class of `migm.training.terms` or of your own (docs/objectives.md).

    With a `rollout`, the shortcut is judged after several of its own steps.

    Returns the loss and a log: every term by its name, without its weight; MSE, the MSE of predicting no change
    (`reuse_mse`) and a cosine on the judged rows; and the number of these `rows`, over which all are means. Judged are
    the rows that are still masked. `fast` compiles shortcut, head and terms on features as one function, and terms on
    guided logits as another.
    """

    fast: Fast = staticmethod(as_it_is)
    guidance: Guidance | None = None
    rows: Literal["masked", "all"] = "masked"

    def __init__(self, terms: Mapping[str, Term], rollout: Rollout | None = None):
        self.features: dict[str, FeatureTerm] = {}
        self.guided: dict[str, GuidedTerm] = {}
        for name, term in terms.items():
            if name in ALWAYS or name.startswith("fidelity_"):
                raise UserError(f"objective.terms.{name}: this is logged by another meaning; name the term otherwise")
            if isinstance(term, GuidedTerm):
                self.guided[name] = term
            else:
                self.features[name] = term
        if not any(term.weight for term in terms.values()):
            raise UserError(f"objective.terms={list(terms)}: the weight of one must be above 0")
        self.rollout, self.together = rollout, bool(self.guided)

    def __call__(self, shortcut: nn.Module, base: Base, batch: Pairs, iteration: int = 0) -> LossAndLog:
        if self.guided and not batch.halves_together:
            raise UserError(
                f"objective.terms.{next(iter(self.guided))} needs both guidance halves of an image in a batch; "
                "set data.halves=together"
            )
        if self.rollout:
            now, target = self.rollout(shortcut, base, batch, iteration, self.fast, self.guidance)
        else:
            now, target = Situation.of(batch, base), batch.target
        loss, log, predicted = self.fast(judged)(self, shortcut, base, now, target)
        if predicted is None:
            return loss, log
        sites = Sites.of(base, batch, now, predicted, target, self.guidance)
        found = totals([*self.guided.values()], base, sites, self.fast)
        for (name, term), sums in zip(self.guided.items(), found, strict=True):
            value = term.value(sums, sites.masked.sum(1)).to(loss.dtype)
            loss = loss + term.weight * value
            log[name] = value.detach()
        return loss, log

    def judge(
        self, shortcut: nn.Module, base: Base, now: Situation, target: Features
    ) -> tuple[Scalar, dict[str, Scalar], Features | None]:
        """Return loss and log of the terms on features, without waiting for the device.

        Terms on guided logits get the features that are predicted for the next step, which come third.
        """
        everywhere = predict(shortcut, base, now)
        predicted, target, before = (self._judged(x, now.branch) for x in (everywhere, target, now.features))
        rows = now.masked if self.rows == "masked" else now.branch.mask
        if rows is None:
            rows = torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
        wide = target.float()  # once for all that compare with it
        mse = masked_mse(predicted, wide, rows)
        seen = PredictedRows(predicted, target, wide, rows, mse, base, self.rows == "all")
        with torch.no_grad():
            reuse = masked_mse(before, wide, rows)
            cosine = masked_cosine(predicted, wide, rows)
        log = {"feature_mse": mse.detach(), "reuse_mse": reuse, "feature_cosine": cosine, "rows": rows.sum().float()}
        loss = mse.new_zeros(())
        for name, term in self.features.items():
            value = term.value(seen)
            loss = loss + term.weight * value
            log[name] = value.detach()
        return loss, log, everywhere if self.guided else None

    def _judged(self, features: Features, branch: Branch) -> FeatureRows:
        return features if self.rows == "all" else image_rows(features, branch)


class FeatureLoss(Mixture):
    """mse_weight * MSE + kl_weight * T^2 * KL on the rows that are still masked (paper, section 3.3).

    `rows` "all" judges every row of the sequence, prompt included, as the released DiMOO code does.

    The KL divergence compares the logits of one guidance half at temperature T. `kl_direction` `teacher_student` is
    KL(teacher || student), as in the released code; `student_teacher` is the direction in the paper's appendix. It is
    logged as `logit_kl`.
    """

    def __init__(
        self,
        mse_weight: NotNegative = 1.0,
        kl_weight: NotNegative = 0.0,
        kl_temperature: Positive = 1.0,
        kl_direction: Direction = "teacher_student",
        rollout: Rollout | None = None,
        rows: Literal["masked", "all"] = "masked",
    ):
        if mse_weight + kl_weight == 0:
            raise ValueError(f"objective.mse_weight={mse_weight}, objective.kl_weight={kl_weight}: one must be above 0")
        terms: dict[str, Term] = {"feature_error": SquaredError(mse_weight)}
        if kl_weight:
            terms["logit_kl"] = TokenKL(kl_weight, kl_temperature, kl_direction)
        super().__init__(terms, rollout)
        self.rows = rows

    def judge(
        self, shortcut: nn.Module, base: Base, now: Situation, target: Features
    ) -> tuple[Scalar, dict[str, Scalar], Features | None]:
        loss, log, predicted = super().judge(shortcut, base, now, target)
        del log["feature_error"]  # it is `feature_mse`
        return loss, log, predicted


def judged(
    objective: Mixture, shortcut: nn.Module, base: Base, now: Situation, target: Features
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Return `objective.judge`, as a function that is the same for all objectives: the compiler keeps one for each."""
    return objective.judge(shortcut, base, now, target)
