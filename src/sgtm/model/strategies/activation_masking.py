"""Activation masking: retain units are silent on forget data (a baseline of arXiv:2512.05648).

The forget units must explain forget data alone, without help from what the retain units compute; in the intact model
both work together, which is not what was trained.
"""

from sgtm.model.strategies.strategy import Strategy

ACTIVATION_MASKING = {"activation_masking": Strategy(activations="zero")}
