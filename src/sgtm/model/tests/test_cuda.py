"""What only a GPU computes. (``SGTM_TEST_DEVICE=cuda pytest src/sgtm/model/tests/test_laws.py``: the laws on one.)"""

import pytest
import torch
from torch.nn import functional as F
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

from sgtm.model import attention, chunked_loss
from sgtm.model.attention import use_attention
from sgtm.model.chunked_loss import chunked
from sgtm.model.masking import SGTM
from sgtm.model.partition import Partition

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
WINDOW, LENGTH, HEADS = 48, 200, 4


def gpt_neo() -> GPTNeoForCausalLM:
    config = GPTNeoConfig(
        vocab_size=500,
        hidden_size=16 * HEADS,
        num_layers=2,
        num_heads=HEADS,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=256,
        window_size=WINDOW,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return GPTNeoForCausalLM(config).cuda()


def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=500)).cuda()


def ids(rows: int = 4, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(500, (rows, length), generator=torch.Generator().manual_seed(1)).cuda()


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||"""
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("width", [4, 8, 12, 16, 32])
def test_a_window_by_the_flash_kernel(width):
    """Half precision against fp64: as near as half precision is, gradients as well, and nothing beyond the window."""
    generator = torch.Generator("cuda").manual_seed(0)
    given = torch.randn(4, 3, HEADS, LENGTH, width, generator=generator, device="cuda").mul(0.5)
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device="cuda").tril().triu(1 - WINDOW)
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        q, k, v, weight = given.to(torch.bfloat16).to(dtype)
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        if dtype == torch.float64:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0)
        else:
            out = attention._slide(q, k, v, WINDOW)
        found.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for own, exact in zip(*found, strict=True):
        assert own.shape == exact.shape
        assert far(own, exact) < 1e-2
    q, k, v, _ = given.to(torch.bfloat16)
    before = attention._slide(q, k, v, WINDOW)
    k[:, :, 10], v[:, :, 10] = 7.0, 7.0
    changed = (attention._slide(q, k, v, WINDOW) != before).any(-1).any(0).any(0).nonzero().flatten().tolist()
    assert changed == list(range(10, 10 + WINDOW))


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("padded", [False, True])
def test_gpt_neo_computes_the_same(implementation, padded):
    """fp32 to rounding and bf16 to its own, against eager in fp32; flex_attention begins at 16 features a head."""
    mask = torch.ones(4, LENGTH, dtype=torch.long, device="cuda")
    mask[1, 90:] = 0
    labels = ids().masked_fill(mask == 0, -100) if padded else ids()
    batch = {"input_ids": ids(), "labels": labels} | ({"attention_mask": mask} if padded else {})
    stock, ours = gpt_neo(), gpt_neo()
    use_attention(ours, implementation)
    for dtype, within in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        exact = stock(**batch)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            out = ours(**batch)
        assert far(out.loss, exact.loss) < within / 10
        for model, loss in ((stock, exact.loss), (ours, out.loss)):
            model.zero_grad()
            loss.backward()
        for (name, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
            if q.grad.norm() > 1e-6:
                assert far(p.grad, q.grad) < within, (name, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_by_a_fused_kernel(dtype, bias):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, weight, b = (torch.randn(s, generator=generator, device="cuda") for s in ((700, 64), (3001, 64), (3001,)))
    targets = torch.randint(3001, (700,), generator=generator, device="cuda")
    targets[[0, 13, 699]] = -100
    found = []
    for kind in (dtype, torch.float64):
        h, w, c = (x.to(dtype).to(kind).requires_grad_() for x in (hidden * 0.2, weight, b))
        c = c if bias else None
        if kind == torch.float64:
            z = F.linear(h, w, c)
            loss = F.cross_entropy(z, targets, ignore_index=-100, reduction="sum")
        else:
            loss = chunked_loss.chunked_loss(h, w, c, targets, 3001 * 256)
        found.append((loss, *torch.autograd.grad(loss, [x for x in (h, w, c) if x is not None])))
    within = 1e-5 if dtype == torch.float32 else 1e-2
    for own, exact in zip(*found, strict=True):
        assert far(own, exact) < within
    assert chunked_loss._compiled(dtype) is not None, "torch.compile failed"


def test_a_masked_batch_in_bf16_spares_what_it_may_not_change():
    """Large and small batches, so losses in chunks and whole; a retain batch is the ablated model's."""
    model = gpt_neo()
    use_attention(model)
    sgtm = SGTM(Partition.of(model, heads=1, neurons=16), joint=("embeddings", "norms"))
    for length in (20, LENGTH):
        for mode in ("retain", "forget"):
            model.zero_grad()
            with sgtm.batch(mode), chunked(model), torch.autocast("cuda", torch.bfloat16):
                model(input_ids=ids(length=length), labels=ids(length=length)).loss.backward()
            spared = sgtm.partition.retain if mode == "forget" else sgtm.partition.forget
            reached = sgtm.partition.forget if mode == "forget" else sgtm.partition.retain
            assert not any(s.of(s.param.grad).any() for s in spared if s.param.grad is not None)
            assert all(s.of(s.param.grad).any() for s in reached if s.param.ndim == 2)
    with sgtm.forward("retain"), torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        silent = model(ids()).logits
    sgtm.partition.ablate()
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        assert torch.equal(model(ids()).logits, silent)


@pytest.mark.parametrize("make", [gpt_neo, llama])
def test_compiled_steps_equal_plain_ones_and_need_no_further_graphs(make):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    losses = []
    for compiled in (False, True):
        model = make()
        use_attention(model)
        sgtm = SGTM(Partition.of(model, heads=1, neurons=16), joint=("embeddings", "norms"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        run = torch.compile(model) if compiled else model
        losses.append([])
        for step in range(4):
            for mode in ("forget", "retain", "default"):
                with sgtm.batch(mode):
                    loss = run(input_ids=ids(), labels=ids(), use_cache=False).loss
                    loss.backward()
                losses[-1].append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            if compiled and step == 0:
                graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
