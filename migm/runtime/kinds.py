"""Types of values for annotations: whole numbers, counts and shares, with their bounds."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol


class Bound(Protocol):
    """A condition on a value that `Annotated` adds to its type."""

    def allows(self, value: Any) -> bool: ...

    def words(self, name: str) -> str:
        """Return words for the allowed values; `name` are words for the type."""
        ...


@dataclass(frozen=True)
class Limits:
    """The smallest and largest allowed number."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def allows(self, value: Any) -> bool:
        enough = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return enough and (self.most is None or value <= self.most) and (self.below is None or value < self.below)

    def words(self, name: str) -> str:
        if self.least is not None and self.most is not None:
            return f"{name} from {self.least} to {self.most}"
        said = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return f"{name} {' and '.join(f'{word} {limit}' for word, limit in said.items() if limit is not None)}"


@dataclass(frozen=True)
class Length:
    """The allowed number of elements of a list or characters of a text."""

    least: int = 1
    most: int | None = None

    def allows(self, value: Any) -> bool:
        return len(value) >= self.least and (self.most is None or len(value) <= self.most)

    def words(self, name: str) -> str:
        return f"{name}, {'not empty' if self.least == 1 else f'{self.least} or more'}"


@dataclass(frozen=True)
class Told:
    """A pattern that a text has to match, and words that describe the allowed values."""

    description: str
    pattern: str = ""

    def allows(self, value: Any) -> bool:
        return not self.pattern or re.fullmatch(self.pattern, value) is not None

    def words(self, name: str) -> str:
        return self.description


LATENCY = "batch<b>_amortised with any b or batch1_wall, and either with _decode at its end to include decoding"
Halves = Literal["apart", "together"]  # of the guidance of an image, in batches
CostKind = bool | Literal["counted"]
Whole = Annotated[int, Limits(least=0)]
Count = Annotated[int, Limits(least=1)]
# The range that scikit-learn takes; sums and products of seeds fit 64 bits.
Seed = Annotated[int, Limits(least=0, most=2**32 - 1)]
Threads = Annotated[int, Limits(least=1, most=4096)]
NotNegative = Annotated[float, Limits(least=0)]
Positive = Annotated[float, Limits(above=0)]
Share = Annotated[float, Limits(least=0, most=1)]
Dropout = Annotated[float, Limits(least=0, below=1)]
Filled = Annotated[str, Length()]
# Stages of pretraining, in the order in which they build on each other.
Stage = Literal["perceptual", "features", "tokenizer", "base", "reference", "words", "text_base"]
Latency = Annotated[str, Told(LATENCY, r"(batch[1-9]\d{0,8}_amortised|batch1_wall)(_decode)?")]
