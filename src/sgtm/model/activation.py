"""``gelu_new`` (GPT-2, GPT-Neo, GPT-J, Phi, ...), which transformers spells out in eight operators, by torch's one.

    gelu_new(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))

The same function, rounded otherwise: under bf16 autocast the eight compute, and keep for the backward pass, fp32.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import NewGELUActivation


class FusedGELU(NewGELUActivation):
    """``NewGELUActivation`` as one operator."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate="tanh")


def use_activation(model: nn.Module, fused: bool = True) -> None:
    """Compute ``model``'s ``gelu_new`` by one operator from now on; or again as the library does, bit for bit."""
    stock, wanted = (NewGELUActivation, FusedGELU) if fused else (FusedGELU, NewGELUActivation)
    for module in model.modules():
        if type(module) is stock:
            module.__class__ = wanted
