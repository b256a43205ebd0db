"""A training step (forward, backward, clipping, AdamW): ours against the stock model's, with masking and without.

    python benchmarks/step.py [--models small] [--rounds 15] [--only strict]
    python benchmarks/step.py --models 8M 34M --batch 8 --context 512 --rounds 20
    python benchmarks/step.py --models 64M llama-64M --precision bf16 --batch 64 --context 512     # a GPU

`stock` is transformers' model trained plainly, `off` is ours without masking: GPT-Neo's attention through
`use_attention`, the loss in chunks where `SGTMTrainer` would take it so. All begin with the same weights and see the
same tokens, and the largest difference of `off`'s and `default`'s losses from `stock`'s is told. Steps run in turns in
one process, ratios are within a round; peak memory is of a process for each case, and on a GPU of the allocator; there
a case that does not fit is told so and left out, and MFU is 6 x parameters x tokens / seconds of what the GPU can do.
"""

import argparse
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from side_by_side import Step, Timing, clock, in_turns, interval, peak_memory, peak_of_gpu, print_peak, report, speeds
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from sgtm import SGTM, Partition
from sgtm.config import load
from sgtm.environment import tune_malloc
from sgtm.model.attention import use_attention
from sgtm.model.chunked_loss import chunked, is_large
from sgtm.model.gpt_neo import GPTNeoSGTMConfig
from sgtm.model.masking import Mode
from sgtm.train.meter import known_peak
from sgtm.train.optimizer import BlockParameters

CONFIGS = Path(__file__).parent.parent / "configs"
PAPER = {path.stem: path for folder in ("wiki", "tinystories") for path in (CONFIGS / folder).glob("*M.yaml")}
SMALL = {"hidden_size": 128, "num_layers": 6, "num_heads": 8, "window_size": 64}
MODES = ("default", "retain", "forget")
UPDATES = ("gradient", "strict", "per_block")


def config_of(model: str, context: int) -> PreTrainedConfig:
    """``small``, a size of the paper, or a Llama of that size: ``llama-8M``."""
    family, _, size = model.rpartition("-")
    sizes = SMALL if size == "small" else dict(load(PAPER[size]).model.config)
    vocab = 4096 if size == "small" else 50257
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if family == "llama":
        return LlamaConfig(
            vocab_size=vocab,
            hidden_size=sizes["hidden_size"],
            intermediate_size=4 * sizes["hidden_size"],
            num_hidden_layers=sizes["num_layers"],
            num_attention_heads=sizes["num_heads"],
            max_position_embeddings=context,
            tie_word_embeddings=True,
            **ends,
        )
    sizes |= {"max_position_embeddings": context, "vocab_size": vocab, **ends}
    sizes.pop("model_type", None)
    types = GPTNeoSGTMConfig(num_layers=sizes["num_layers"]).attention_types
    return AutoConfig.for_model("gpt_neo", attention_types=types, **sizes)


class Bench:
    """One model's cases, all of the same weights and tokens."""

    def __init__(self, model: str, settings: argparse.Namespace) -> None:
        self.name, self.settings = model, settings
        self.config = config_of(model, settings.context)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator().manual_seed(0)
        shape = (settings.batch, settings.context)
        self.ids = torch.randint(self.config.vocab_size, shape, generator=generator).to(self.device)
        self.positions = torch.randint(3, shape, generator=generator)

    def cases(self) -> dict[str, Callable[[], Step]]:
        found = {"stock": self.stock, "off": self.off}
        mixed: dict[str, Mode] = {
            "a mode for each example": [MODES[i % 3] for i in range(len(self.ids))],
            "a mode for each position": self.positions,
        }
        updates = UPDATES if self.name == "small" or self.settings.only else ("gradient",)
        for update in updates:
            for name, mode in {**dict(zip(MODES, MODES, strict=True)), **mixed}.items():
                found[f"{name}, {update}"] = lambda mode=mode, update=update: self.masked(mode, update)  # type: ignore[misc]
            found[f"mixed in parts, {update}"] = lambda update=update: self.masked(None, update)  # type: ignore[misc]
        if self.name == "small" and self.device == "cpu":
            found["default, strict, fused AdamW"] = lambda: self.masked("default", "strict", fused=True)
        chosen = [name for name in found if self.settings.only in name or name in ("stock", "off")]
        return {name: found[name] for name in chosen}

    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in AutoModelForCausalLM.from_config(self.config).parameters())

    def stock(self) -> Step:
        net = self._model()
        return self._step(net, self._adamw(net.parameters()), [(nullcontext, slice(None))])

    def off(self) -> Step:
        net = self._fast_model()
        return self._step(net, self._adamw(net.parameters()), [(nullcontext, slice(None))], fast=True)

    def _adamw(self, params: Iterable[Any], fused: bool = False) -> torch.optim.AdamW:
        """torch's own choice of implementation, or its fused one, which is everybody's on a GPU."""
        return torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01, fused=fused or self.device == "cuda" or None)

    def masked(self, mode: Mode | None, update: str, fused: bool = False) -> Step:
        """A mode for the batch, or None: a third of the examples in each, in parts, the forget part first."""
        net = self._fast_model()
        sgtm = SGTM(Partition.of(net, heads=1, neurons=32), joint=("embeddings", "norms"))
        blocks = BlockParameters(sgtm, contiguous=fused or self.device == "cuda")
        names = {name for name, _ in net.named_parameters()}
        groups = blocks.groups(1e-3, 0.01, names, by_owner=update == "per_block")
        plain = update == "gradient"
        optimizer = self._adamw(net.parameters() if plain else groups, fused)
        if not plain:
            blocks.attach(optimizer)
        parts: list[tuple[Callable[[], AbstractContextManager[object]], slice]]
        if mode is None:
            order: list[Mode] = ["forget", "retain", "default"]
            parts = [(lambda m=m: sgtm.batch(m), slice(i, None, 3)) for i, m in enumerate(order)]  # type: ignore[misc]
        else:
            parts = [(lambda: sgtm.batch(mode), slice(None))]
        present = {mode} if isinstance(mode, str) else set(MODES)

        def clip() -> None:
            if not plain:
                blocks.set_gradients(present)
            if update == "per_block":
                blocks.clip(1.0)
            else:
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)

        return self._step(net, optimizer, parts, fast=True, clip=clip)

    def _step(
        self,
        net: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        parts: list[tuple[Callable[[], AbstractContextManager[object]], slice]],
        fast: bool = False,
        clip: Callable[[], None] | None = None,
    ) -> Step:
        low = self.settings.precision == "bf16"
        run = torch.compile(net) if self.settings.compile else net

        def step() -> float:
            total = torch.zeros((), device=self.device)
            for context, rows in parts:
                ids = self.ids[rows]
                batch = {"input_ids": ids, "labels": F.pad(ids[:, 1:], (1, 0), value=-100)}
                large = fast and not self.settings.compile and is_large(batch, net, low)
                with context(), chunked(net) if large else nullcontext():
                    with torch.autocast(self.device, torch.bfloat16, enabled=low):
                        loss = run(**batch, use_cache=False).loss * (len(ids) / len(self.ids))
                    loss.backward()
                total += loss.detach()
            if clip is None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            else:
                clip()
            optimizer.step()
            net.zero_grad()
            return float(total)

        return step

    def _model(self) -> PreTrainedModel:
        torch.manual_seed(0)
        with torch.device(self.device):  # where drawing large weights is fast
            return AutoModelForCausalLM.from_config(self.config)  # type: ignore[no-any-return]

    def _fast_model(self) -> PreTrainedModel:
        net = self._model()
        use_attention(net)
        return net


def measure(bench: Bench) -> dict[str, object]:
    settings, cases = bench.settings, bench.cases()
    memory: dict[str, float] = {}
    if bench.device == "cuda":
        memory = {name: peak_of_gpu(make) for name, make in cases.items()}
    elif settings.memory:
        given = ["--batch", str(settings.batch), "--context", str(settings.context), "--precision", settings.precision]
        given += ["--only", settings.only, *(["--compile"] if settings.compile else [])]
        memory = {name: peak_memory([*given, "--models", bench.name, "--peak-of", name]) for name in cases}
    try:
        fitting = {name: make() for name, make in cases.items() if math.isfinite(memory.get(name, 0.0))}
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"{bench.name}: all cases together do not fit; choose some with --only") from error
    return {"timings": in_turns(fitting, settings.rounds), "memory_mb": memory, "parameters": bench.parameters()}


def rows_of(name: str, found: dict[str, object], tokens: int) -> list[list[str]]:
    timings: dict[str, list[Timing]] = found["timings"]  # type: ignore[assignment]
    memory: dict[str, float] = found["memory_mb"]  # type: ignore[assignment]
    peak = known_peak()
    rows = []
    for case in memory or timings:
        used = f"{memory[case]:,.0f}" if memory else ""
        if case not in timings:
            rows.append([name, case, "does not fit", *[""] * 7])
            continue
        own = timings[case]
        middle = sorted(getattr(t, clock()) for t in own)[len(own) // 2]
        same = "stock" in timings and (case == "off" or case.startswith("default"))
        apart = max(abs(a.loss - b.loss) for a, b in zip(own, timings["stock"], strict=True)) if same else 0.0
        by_stock, by_off = (
            interval(speeds(own, timings[x], clock())) if x in timings else "" for x in ("stock", "off")
        )
        rows.append(
            [
                name,
                case,
                f"{middle * 1e3:,.0f}",
                f"{tokens / middle:,.0f}",
                f"{6 * found['parameters'] * tokens / middle / peak / 1e12:.3f}" if peak else "",  # type: ignore[operator]
                "" if case == "stock" else by_stock,
                "" if case in ("stock", "off") else by_off,
                used,
                f"{memory[case] / memory['stock']:.2f}" if memory and memory["stock"] < math.inf else "",
                f"{apart:.1e}" if same else "",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["small"], help="small, 8M ... 254M, llama-8M ...")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this, beside stock and off")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory too, of a process for each case (on a GPU always)"
    )
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/step.json"))
    settings = parser.parse_args()
    tune_malloc()
    if settings.peak_of:
        bench = Bench(settings.models[0], settings)
        step = bench.cases()[settings.peak_of]
        print_peak(lambda: [run() for run in [step()] * 2])
        return
    found = {model: measure(Bench(model, settings)) for model in settings.models}
    tokens = settings.batch * settings.context
    title = f"{settings.batch} x {settings.context} tokens, {settings.precision}{', compiled' * settings.compile}"
    seconds = f"ms ({clock()} time)"
    columns = ("model", "step", seconds, "tokens/s", "MFU", "speed / stock", "speed / off")
    columns += ("peak MB", "/ stock", "loss apart")
    rows = [row for model, values in found.items() for row in rows_of(model, values, tokens)]
    report(title, columns, rows, found, settings.out)


if __name__ == "__main__":
    main()
