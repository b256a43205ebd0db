"""Under torch.compile a model is one graph for each mode, and stays so."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sgtm.model.attention import use_attention
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition
from sgtm.model.strategies import STRATEGIES

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
MODES = ("default", "forget", "retain")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gpt_neo() -> PreTrainedModel:
    types = {"attention_types": [[["global", "local"], 1]], "window_size": 4, "max_position_embeddings": 32}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPTNeoForCausalLM(GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, vocab_size=50, **types, **ends))
    use_attention(model)
    return model


def llama() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50))


def compiled(model: PreTrainedModel, graphs: list[Any]) -> Any:
    """``model`` as one graph, or an error; each graph that is made is noted."""

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.parametrize(
    ("family", "strategy"),
    [(gpt_neo, name) for name in ("parameter_masking", "gradient_routing", "activation_masking")]
    + [pytest.param(llama, name, marks=pytest.mark.slow) for name in STRATEGIES],
)
def test_one_graph_for_each_mode(family: Any, strategy: str) -> None:
    model, graphs = family(), []
    sgtm = SGTM(Partition.of(model, heads=1, neurons=8), strategy, joint=("embeddings", "norms"))
    run = compiled(model, graphs)
    for step in range(4):
        for mode in (*MODES, "retain", "default"):
            ids = torch.randint(50, (2, 12))
            with sgtm.batch(mode):
                run(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        assert len(graphs) <= len(MODES), f"step {step}"


def test_parts_of_any_size_need_no_further_graphs() -> None:
    """A batch's parts have another size at every step: one more graph a mode, of any size, and then none."""
    model, graphs = llama(), []
    sgtm = SGTM(Partition.of(model, heads=1, neurons=8))
    run = compiled(model, graphs)
    seen = []
    for size in (4, 7, 5, 9, 3, 8):
        for mode in MODES:
            ids = torch.randint(50, (size, 12))
            with sgtm.batch(mode):
                run(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        seen.append(len(graphs))
    assert seen[1:] == [seen[1]] * 5
    assert seen[1] <= 2 * len(MODES)
