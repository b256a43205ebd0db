"""Masks, strict updates and ablation on parameters that FSDP2 has sharded, in two processes over gloo."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
CASES = [
    "gpt2-parameter_masking-joint_frozen",  # fused and transposed: columns of input projections
    "gpt_neo-parameter_masking-joint_frozen",  # tied embeddings
    "gpt_neo-parameter_masking_no_proj-joint_updated",
    "llama-gradient_routing-joint_updated",
    "llama-activation_masking-joint_updated",
    "llama_layers-parameter_masking-joint_frozen",
    "gpt_neox-parameter_masking-joint_frozen",  # interleaved heads: many slices
    "falcon-parameter_masking-joint_frozen",
    "gemma2-parameter_masking-joint_frozen",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{case: {check: what was found}}; see ``two_shards``."""
    out = tmp_path_factory.mktemp("shards") / "found.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]
    done = subprocess.run(
        [*launch, "sgtm.model.tests.two_shards", str(out), *CASES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "check", ["same_mode", "law_8_and_mixed_modes", "law_9", "positions", "masked_afterwards", "ablated"]
)
def test_sharded_gradients_equal_those_of_a_whole_model(found, case, check):
    """In fp64, relative to each gradient's largest; sums over processes are rounded in another order."""
    assert found[case][check] < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_a_loop_with_ddp_gives_what_one_process_gives(found, case):
    """With a name for each batch, though DDP sends gradients before such a batch is masked, and several at once."""
    assert found[case]["replicated"] < 1e-12


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("law", ["law_4", "law_10"])
def test_laws_of_shards(found, case, law):
    """4: gradients of a forget batch. 10: strict updates of weights and optimizer state."""
    assert found[case][law] == []
