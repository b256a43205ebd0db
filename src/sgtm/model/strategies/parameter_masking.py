"""SGTM proper: retain parameters are masked out of the gradient (arXiv:2512.05648 section 3).

The forward pass of a forget batch is the ordinary one, so the forget units learn what the retain units leave to be
learned, and only parameters are protected, not activations. The variants leave some output projections (and attention)
unmasked: there the forget data may also adapt how retain units are read.
"""

from sgtm.model.strategies.strategy import Strategy

PARAMETER_MASKING = {
    "parameter_masking": Strategy(frozen=frozenset({"attn.in", "attn.out", "mlp.in", "mlp.out"})),
    "parameter_masking_no_mlp_proj": Strategy(frozen=frozenset({"attn.in", "attn.out", "mlp.in"})),
    "parameter_masking_no_attn_proj": Strategy(frozen=frozenset({"attn.in", "mlp.in", "mlp.out"})),
    "parameter_masking_no_proj": Strategy(frozen=frozenset({"attn.in", "mlp.in"})),
    "parameter_masking_no_proj_no_attn": Strategy(frozen=frozenset({"mlp.in"})),
}
