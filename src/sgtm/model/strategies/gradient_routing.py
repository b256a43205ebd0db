"""Gradient Routing (Cloud et al. 2024, arXiv:2410.04332): stop gradients at retain units' activations.

The gradient of a forget batch does not pass through retain units, so what stands before them is updated through forget
units alone. The columns of the output projections that read retain units still get a gradient.
"""

from sgtm.model.strategies.strategy import Strategy

GRADIENT_ROUTING = {"gradient_routing": Strategy(activations="detach")}
