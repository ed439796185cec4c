"""What a block loses, from what it makes of feeds and what it should make: sums over rows, then a loss and its slope.

Feeds are taken one after another, so a loss is a function of sums that are added feed by feed, in float64.
"""

from __future__ import annotations

from typing import Any, Protocol


class Loss(Protocol):
    @property
    def is_joint(self) -> bool:
        """Whether the slope at one feed depends on what is made of the others."""
        ...

    def sums(self, made: Any, wanted: Any) -> Any:
        """Of rows [t, C], a tensor of float64 that is added over feeds."""
        ...

    def value(self, sums: Any) -> float: ...

    def slope(self, made: Any, wanted: Any, sums: Any) -> Any:
        """The gradient with respect to `made`, for the `sums` of all feeds."""
        ...


class SquaredError:
    """Mean over all numbers."""

    is_joint = False

    def sums(self, made: Any, wanted: Any) -> Any:
        import torch

        return torch.stack([(made.double() - wanted.double()).square().sum(), torch.tensor(float(made.numel()), dtype=torch.float64)])

    def value(self, sums: Any) -> float:
        total, count = sums.tolist()
        return total / max(1.0, count)

    def slope(self, made: Any, wanted: Any, sums: Any) -> Any:
        return (made - wanted) * (2 / max(1.0, float(sums[1])))


class ChannelDistance:
    """How far means and variances of channels lie apart, over the rows of all feeds:

    (1/C) Σ_c ( |μ_c(made) − μ_c(wanted)| + |σ²_c(made) − σ²_c(wanted)| )
    """

    is_joint = True

    def sums(self, made: Any, wanted: Any) -> Any:
        import torch

        made, wanted = made.double(), wanted.double()
        count = torch.full_like(made[0], len(made)) if len(made) else made.sum(0)
        return torch.stack([count, made.sum(0), made.square().sum(0), wanted.sum(0), wanted.square().sum(0)])

    def value(self, sums: Any) -> float:
        means, variances, _ = self._apart(sums)
        return float((means.abs() + variances.abs()).mean())

    def slope(self, made: Any, wanted: Any, sums: Any) -> Any:
        means, variances, mean = self._apart(sums)
        factor = 1 / (sums[0] * len(means))
        constant, linear = means.sign() * factor, 2 * variances.sign() * factor
        return ((constant - linear * mean) + linear * made.double()).to(made.dtype)

    @staticmethod
    def _apart(sums: Any) -> tuple[Any, Any, Any]:
        """Differences of means and of variances, and the means of what is made."""
        count, made, made2, wanted, wanted2 = sums
        count = count.clamp(min=1)
        mean, other = made / count, wanted / count
        return mean - other, (made2 / count - mean.square()) - (wanted2 / count - other.square()), mean
