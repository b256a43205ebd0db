"""A linear layer whose retain and forget outputs are parameters of their own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitLinearOut(nn.Module):
    """``y = x [W_retain; W_forget]^T + [b_retain; b_forget]``: ``nn.Linear`` with its outputs in two parameters.

    Initialised like ``nn.Linear``: one seed gives the same values and leaves the generator in the same state.
    ``weight`` (out_features, in_features) and ``bias`` (out_features,) read as the joined tensors.

    Args:
        in_features: width of the input.
        out_features: width of the output, retain and forget together.
        retain_features: how many of the first outputs belong to retain units; the rest belong to forget units.
        bias: whether to add a bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        retain_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < retain_features < out_features:
            raise ValueError(
                f"retain_features={retain_features} must be between 1 and out_features - 1 = {out_features - 1}; "
                "use nn.Linear where all outputs are on one side"
            )
        self.in_features, self.out_features, self.retain_features = in_features, out_features, retain_features
        self._take(nn.Linear(in_features, out_features, bias, device=device, dtype=dtype))

    @classmethod
    def from_linear(cls, linear: nn.Linear, retain_features: int) -> "SplitLinearOut":
        """``linear`` with its outputs split: the same values, and no random number drawn."""
        with torch.device("meta"):
            split = cls(linear.in_features, linear.out_features, retain_features, linear.bias is not None)
        split._take(linear)
        return split

    def _take(self, linear: nn.Linear) -> None:
        k = self.retain_features
        self.weight_retain = nn.Parameter(linear.weight.detach()[:k].clone())
        self.weight_forget = nn.Parameter(linear.weight.detach()[k:].clone())
        if linear.bias is None:
            self.register_parameter("bias_retain", None)
            self.register_parameter("bias_forget", None)
        else:
            self.bias_retain = nn.Parameter(linear.bias.detach()[:k].clone())
            self.bias_forget = nn.Parameter(linear.bias.detach()[k:].clone())

    @property
    def weight(self) -> Tensor:
        return torch.cat((self.weight_retain, self.weight_forget))

    @property
    def bias(self) -> Tensor | None:
        return None if self.bias_retain is None else torch.cat((self.bias_retain, self.bias_forget))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., in_features) -> (..., out_features)."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        forget = self.out_features - self.retain_features
        bias = self.bias_retain is not None
        return f"in_features={self.in_features}, out_features={self.retain_features}+{forget}, bias={bias}"
