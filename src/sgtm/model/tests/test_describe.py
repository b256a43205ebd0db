"""Who owns what, in plain values: it adds up, and says what is masked."""

import json

import pytest

from sgtm.model.describe import describe
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.model.tests.families import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_add_up(name: str) -> None:
    family = FAMILIES[name]
    partition = Partition.of(family.model(), **family.units)
    found = json.loads(json.dumps(describe(SGTM(partition))))
    owners = partition.num_parameters()
    assert found["parameters"] == owners
    for owner in ("retain", *partition.domains):
        assert sum(layer["parameters"][owner] for layer in found["layers"]) == owners[owner]
    assert sum(group["parameters"] for group in found["joint"]) == owners["joint"]
    assert sum(layer["parameters"]["joint"] for layer in found["layers"]) <= owners["joint"]
    assert [layer["layer"] for layer in found["layers"] if layer["has_forget_units"]] == sorted(partition.layers)
    for units in found["domains"].values():
        assert all(units["heads"] <= layer["heads"] for layer in found["layers"])


@pytest.mark.parametrize("joint", [(), ("embeddings",), ("embeddings", "norms", "final_norm")])
def test_masked_groups_are_those_that_were_asked_for(joint: tuple[str, ...]) -> None:
    family = FAMILIES["gpt_neo"]
    found = describe(SGTM(Partition.of(family.model(), **family.units), joint=joint))
    masked = {group["group"]: group["masked"] for group in found["joint"]}
    assert {group for group, number in masked.items() if number} == set(joint)
    assert all(group["masked"] in (0, group["parameters"]) for group in found["joint"])


def test_a_strategy_says_what_it_does() -> None:
    family = FAMILIES["gpt_neo"]
    for strategy, activations in (("parameter_masking", "keep"), ("gradient_routing", "detach")):
        found = describe(SGTM(Partition.of(family.model(), **family.units), strategy))
        assert found["strategy"]["activations"] == activations
        assert bool(found["strategy"]["frozen"]) is (strategy == "parameter_masking")
