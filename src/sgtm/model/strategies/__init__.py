"""What a forget batch may not change: one row a strategy."""

from sgtm.model.strategies.activation_masking import ACTIVATION_MASKING
from sgtm.model.strategies.gradient_routing import GRADIENT_ROUTING
from sgtm.model.strategies.parameter_masking import PARAMETER_MASKING
from sgtm.model.strategies.strategy import Strategy

STRATEGIES: dict[str, Strategy] = {**PARAMETER_MASKING, **GRADIENT_ROUTING, **ACTIVATION_MASKING}

__all__ = ["STRATEGIES", "Strategy"]
