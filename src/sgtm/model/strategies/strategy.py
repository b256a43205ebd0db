"""The two facts that make a strategy."""

from dataclasses import dataclass
from typing import Literal

from sgtm.model.partition import Site


@dataclass(frozen=True)
class Strategy:
    """What happens on a forget batch; on a retain batch every strategy zeroes the forget units' activations.

    Args:
        activations: what the retain units pass on: ``keep`` their activations, ``detach`` them (no gradient flows
            back through them) or ``zero`` them.
        frozen: the sites where the gradients of retain slices are zeroed after the backward pass.
    """

    activations: Literal["keep", "detach", "zero"] = "keep"
    frozen: frozenset[Site] = frozenset()

    def reaches(self, site: Site, is_output_bias: bool) -> bool:
        """Whether a forget batch gives a gradient to the retain slices of ``site``.

        An output bias is added behind the units: no treatment of activations keeps a gradient from it.
        """
        if site in self.frozen:
            return False
        if is_output_bias or self.activations == "keep":
            return True
        return self.activations == "detach" and site in ("attn.out", "mlp.out")
