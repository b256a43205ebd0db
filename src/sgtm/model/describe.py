"""Who owns what of a model, in plain values: what ``partition.json`` of a run holds, for figures that know no torch."""

from collections import Counter
from typing import Any

from sgtm.model.masking import SGTM
from sgtm.model.partition import JOINT_GROUPS, Partition
from sgtm.model.sublayers import UNITS, layers_of, sublayers

_OTHER = "other"


def describe(sgtm: SGTM) -> dict[str, Any]:
    """A model's units and parameters by owner.

    Returns:
        ``domains``: {name: {heads, neurons}} of each layer that has forget units; ``layers``: for each layer its
        number, its ``heads`` and ``neurons``, whether it ``has_forget_units``, and its ``parameters`` by owner;
        ``joint``: the parameters of no unit, by group, and how many of them forget batches leave alone (``masked``);
        ``parameters``: by owner, of the whole model; ``strategy``: what happens on a forget batch.
    """
    partition, strategy = sgtm.partition, sgtm.strategy
    return {
        "model_type": partition.model.config.model_type,
        "domains": {name: {"heads": u.heads, "neurons": u.neurons} for name, u in partition.domains.items()},
        "layers": _layers(partition),
        "joint": _joint(partition, sgtm.frozen_joint),
        "parameters": partition.num_parameters(),
        "strategy": {"activations": strategy.activations, "frozen": sorted(strategy.frozen)},
    }


def _layers(partition: Partition) -> list[dict[str, Any]]:
    owned = Counter[tuple[int, str]]()
    for s in (*partition.retain, *partition.forget):
        owned[s.layer, s.domain or "retain"] += s.numel
    joint = partition.joint_of_layers()
    owners = ("retain", *partition.domains)
    return [
        {
            "layer": i,
            **{UNITS[s.kind]: s.units for s in sublayers(partition.model, block, partition.architecture)},
            "has_forget_units": i in partition.layers,
            "parameters": {owner: owned[i, owner] for owner in owners} | {"joint": joint[i]},
        }
        for i, block in enumerate(layers_of(partition.model, partition.architecture))
    ]


def _joint(partition: Partition, frozen: tuple[str, ...]) -> list[dict[str, Any]]:
    """The joint parameters by group: their number, and that of those which forget batches leave alone."""
    group_of = {name: group for group in reversed(JOINT_GROUPS) for name in _names(partition, group)}
    numbers, masked = Counter[str](), Counter[str]()
    for name, parameter in partition.joint.items():
        group = group_of.get(name, _OTHER)
        numbers[group] += parameter.numel()
        masked[group] += parameter.numel() * (name in frozen)
    return [{"group": g, "parameters": numbers[g], "masked": masked[g]} for g in (*JOINT_GROUPS, _OTHER) if numbers[g]]


def _names(partition: Partition, group: str) -> tuple[str, ...]:
    try:
        return partition.select_joint([group])
    except ValueError:  # a tied head is the embedding
        return ()
