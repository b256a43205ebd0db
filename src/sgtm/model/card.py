"""What an export is, in words: for the terminal, and as the checkpoint's model card."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sgtm.model.partition import Partition

Losses = Mapping[str, Mapping[str, float]]  # category -> variant -> nats per token


@dataclass(frozen=True)
class Export:
    """What was written.

    Args:
        removed: the domains.
        cut: heads and neurons that were cut out of each layer.
        zeroed: heads and neurons of each layer with forget units that are zero instead.
        max_difference: largest difference between logits of the checkpoint and of the ablated model.
        scanned: vectors of removed weights that were looked for in the files and not found; None: not looked for.
    """

    folder: Path
    removed: tuple[str, ...]
    cut: dict[str, int]
    zeroed: dict[str, int]
    parameters_before: int
    parameters_after: int
    max_difference: float
    scanned: int | None = None

    def __str__(self) -> str:
        written = (
            f"written to {self.folder}: {', '.join(self.removed)} removed ({self.how}), {self.parameters_before:,} -> "
            f"{self.parameters_after:,} parameters; loaded again by stock transformers, its logits differ from the "
            f"ablated model's by at most {self.max_difference:.2g}"
        )
        if self.scanned is None:
            return written
        return (
            f"{written}\nverified: none of {self.scanned:,} removed weight vectors stands in the files; the same "
            "logits in a process that cannot import sgtm"
        )

    @property
    def how(self) -> str:
        parts = ((self.cut, "cut out of each layer"), (self.zeroed, "of a layer set to zero"))
        named = ((" and ".join(f"{n} {name}" for name, n in units.items() if n), what) for units, what in parts)
        return ", ".join(f"{units} {what}" for units, what in named if units)


def model_card(done: Export, partition: Partition, losses: Losses | None) -> str:
    """README.md of the checkpoint: what was removed, how, and what was measured."""
    family = partition.model.config.model_type.removesuffix("_sgtm")
    layers = "every layer" if len(partition.layers) == partition.model.config.num_hidden_layers else None
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [sgtm, selective-gradient-masking]",
        "---",
        f"# A {family} without {' and '.join(done.removed)}",
        "",
        "Trained with Selective Gradient Masking (arXiv:2512.05648): each domain lies in units of its own, which were",
        "then removed. This is a stock checkpoint; it loads without sgtm.",
        "",
        f"| domain | heads | neurons | of {layers or f'layers {list(partition.layers)}'} |",
        "|---|---|---|---|",
    ]
    for name, units in partition.domains.items():
        fate = "removed" if name in done.removed else "still in it"
        lines.append(f"| {name} | {units.heads} | {units.neurons} | {fate} |")
    dtype = str(partition.model.dtype).removeprefix("torch.")
    lines += [
        "",
        f"- How: {done.how}",
        f"- Parameters: {done.parameters_before:,} before, {done.parameters_after:,} after",
        f"- Largest difference to the logits of the ablated model ({dtype}): {done.max_difference:.2g}",
        "",
        *_loss_table(losses or {}),
    ]
    return "\n".join(lines) + "\n"


def _loss_table(losses: Losses) -> Iterator[str]:
    variants = list(dict.fromkeys(v for of_category in losses.values() for v in of_category))
    if not variants:
        yield "No losses were measured at export."
        return
    yield "Losses on the test split, nats per token:"
    yield ""
    yield f"| category | {' | '.join(variants)} |"
    yield "|---" * (len(variants) + 1) + "|"
    for category, of_category in losses.items():
        cells = (f"{of_category[v]:.3f}" if v in of_category else "" for v in variants)
        yield f"| {category} | {' | '.join(cells)} |"
