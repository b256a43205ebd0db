"""GRAM, gradient-routed auxiliary modules (Roland et al. 2026, arXiv:2607.08077): a core and a small MLP a domain.

Every layer's MLP is a core that is always on and one auxiliary module for each domain k, a block of MLP neurons:

    MLP(x) = W2_core s(W1_core x) + sum over active k of W2_k s(W1_k x)

and all else (attention, embeddings, norms, head) is core. One AdamW a module: ``train.update: per_block``. What is
labelled for domain k runs through the core and module k and updates module k alone; what is labelled retain runs
through the core and updates the core; what is unlabeled runs through and updates everything. Two probabilities, drawn
once a step, change this:

- auxiliary spread: in this share of the steps what is labelled for a domain updates the core as well;
- core robustness: in this share of the steps what is unlabeled runs through and updates the core alone, so that the
  core can do without modules.

So it is ``parameter_masking`` without heads, with every joint parameter masked, per-block updates and the two draws.
The names are the paper's; which data core robustness is about, and the two values, are our reading of it. With several
domains ``train.hear_domains`` applies as to every method (docs/decisions/007).

With spread, module and core learn the same text, and the faster one keeps it: a module at a lower rate than the core's
removes nothing, which is refused.
"""

from sgtm.config import ConfigError, RunConfig

CORE_ROBUSTNESS = 0.5
AUXILIARY_SPREAD = 0.5


def check(config: RunConfig) -> None:
    """Raise a ConfigError where the configuration is not GRAM's."""
    units = config.partition.domains or {config.partition.names[0]: {"heads": config.partition.heads}}
    for domain, counts in units.items():
        if heads := counts.get("heads", 0):
            raise ConfigError(
                f"method=gram has modules of MLP neurons alone, and {domain} has heads={heads}; use heads: 0"
            )
    if config.train.update != "per_block":
        raise ConfigError(
            f"method=gram has one optimizer a module, and train.update={config.train.update}; use per_block"
        )
    spread, rate, end = config.train.auxiliary_spread, config.train.forget_lr_scale, config.train.forget_lr_end
    if min(rate, rate if end is None else end) < 1 and (AUXILIARY_SPREAD if spread is None else spread):
        raise ConfigError(
            f"method=gram with train.forget_lr_scale={rate} and forget_lr_end={end}: in steps with auxiliary spread "
            "the core learns labelled text too, and faster than a module at a lower rate; use 1 for both, or "
            "auxiliary_spread: 0"
        )
