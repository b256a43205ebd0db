"""The partition drawn over layers: every layer's heads and neurons to scale, and whose they are."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from sgtm.plot.chart import short
from sgtm.plot.colors import PALETTE, color_class
from sgtm.plot.page import Html, details, new_id, table, tag

_WIDTH, _LABEL, _GAP, _NUMBER = 440, 98, 12, 50
_ROW, _BAR, _TOP = 22, 14, 24
_HEADS = 0.4  # of the width that units have
_SHAPES = {"retain": "mark faint", "joint": "soft"}
_FEW = 32  # heads
_THINNEST = 0.75  # a block can be seen however few its units are
_MANY = 24  # layers: rows are lower then
_WORDS = {"embeddings": "embeddings", "norms": "norms", "final_norm": "final norm", "head": "head", "other": "other"}


def domain_colors(domains: Sequence[str]) -> dict[str, str]:
    """The colour of each domain's units."""
    return dict(zip(domains, cycle((PALETTE[1], *PALETTE[3:])), strict=False))


def partition_figure(partition: Mapping[str, Any]) -> Html:
    """Rows: the joint groups before the layers, the layers, the joint groups behind them; then the numbers.

    Args:
        partition: what ``partition.json`` holds.
    """
    colors = domain_colors(list(partition["domains"]))
    groups = {group["group"]: group for group in partition["joint"]}
    rows: list[tuple[str, Any]] = [("joint", groups[name]) for name in ("embeddings",) if name in groups]
    rows += [("layer", layer) for layer in partition["layers"]]
    rows += [("joint", groups[name]) for name in ("norms", "final_norm", "head", "other") if name in groups]
    step = _ROW if len(rows) <= _MANY else 15
    pieces = [_headings(bool(partition["layers"]) and "neurons" in partition["layers"][0])]
    for i, (kind, row) in enumerate(rows):
        top = _TOP + i * step
        pieces += _layer(row, partition["domains"], colors, top) if kind == "layer" else _joint(row, top)
    return tag("div", _figure(partition, pieces, _TOP + len(rows) * step + 4), _legend(colors), _numbers(partition))


def _figure(partition: Mapping[str, Any], pieces: Sequence[Html], height: int) -> Html:
    name, about = new_id("title"), new_id("about")
    picture = tag(
        "svg",
        tag("title", "Units and parameters by layer", id=name),
        tag("desc", _described(partition), id=about),
        *pieces,
        class_="plot",
        viewBox=f"0 0 {_WIDTH} {height}",
        role="img",
        aria_labelledby=f"{name} {about}",
    )
    return tag("figure", picture)


def _described(partition: Mapping[str, Any]) -> str:
    units = ", ".join(
        f"{name}: {u['heads']} heads and {u['neurons']} neurons" for name, u in partition["domains"].items()
    )
    with_units = [str(layer["layer"]) for layer in partition["layers"] if layer["has_forget_units"]]
    those = f"of layers {', '.join(with_units)} the last units are forget units ({units})"
    return f"{len(partition['layers'])} layers; {those}."


def _headings(has_neurons: bool) -> Html:
    (heads, _), (neurons, _) = _columns()
    words = [tag("text", "attention heads", x=heads, y=13)]
    words += [tag("text", "MLP neurons", x=neurons, y=13)] * has_neurons
    return tag("g", *words, tag("text", "parameters", x=_WIDTH, y=13, text_anchor="end"), aria_hidden="true")


def _columns() -> tuple[tuple[float, float], tuple[float, float]]:
    """(left, width) of heads and of neurons."""
    room = _WIDTH - _LABEL - _GAP - _NUMBER - 8
    heads = room * _HEADS
    return (_LABEL, heads), (_LABEL + heads + _GAP, room - heads)


def _layer(layer: Mapping[str, Any], domains: Mapping[str, Any], colors: Mapping[str, str], top: float) -> list[Html]:
    pieces = [_name(f"layer {layer['layer']}", top), _number(sum(layer["parameters"].values()), top)]
    for place, kind in zip(_columns(), ("heads", "neurons"), strict=True):
        if layer.get(kind):
            pieces += _units(layer, kind, _owned(layer, kind, domains), colors, place, top)
    return pieces


def _units(
    layer: Mapping[str, Any],
    kind: str,
    owned: Mapping[str, int],
    colors: Mapping[str, str],
    place: tuple[float, float],
    top: float,
) -> Iterator[Html]:
    """A block for each owner, to scale; heads are told apart where they are few."""
    left, width = place
    total, x = layer[kind], left
    for owner, number in owned.items():
        about = tag("title", f"layer {layer['layer']}, {owner}: {number:,} of {total:,} {kind}")
        size = width * number / total
        yield _block(about, (x, size), top, colors.get(owner, PALETTE[0]), _SHAPES.get(owner, "mark"))
        x += size
    if kind == "heads" and total <= _FEW:
        for cut in (left + width * i / total for i in range(1, total)):
            yield tag("line", x1=f"{cut:.1f}", x2=f"{cut:.1f}", y1=top, y2=top + _BAR, class_="cut")


def _owned(layer: Mapping[str, Any], kind: str, domains: Mapping[str, Any]) -> dict[str, int]:
    """Units of each owner, in their order; those of a layer without forget units are joint."""
    total: int = layer[kind]
    if not layer["has_forget_units"]:
        return {"joint": total}
    forget = {name: units[kind] for name, units in domains.items()}
    owned = {"retain": total - sum(forget.values()), **forget}
    return {owner: number for owner, number in owned.items() if number}


def _block(about: Html, place: tuple[float, float], top: float, color: str, shape: str) -> Html:
    left, width = place
    size = f"{max(width, _THINNEST):.2f}"
    block = tag("rect", about, x=f"{left:.2f}", y=top, width=size, height=_BAR, class_=shape)
    return tag("g", block, class_=color_class(color))


def _joint(group: Mapping[str, Any], top: float) -> list[Html]:
    (left, _), (start, width) = _columns()
    masked = group["masked"]
    says = "joint; forget batches leave it alone" if masked else "joint; all batches update it"
    if 0 < masked < group["parameters"]:
        says = f"joint; forget batches leave {masked / group['parameters']:.0%} of it alone"
    box = tag("rect", x=left, y=top, width=f"{start + width - left:.1f}", height=_BAR, rx=3, class_="soft")
    return [
        _name(_WORDS[group["group"]], top),
        box,
        tag("text", says, x=left + 7, y=top + 11, class_="small"),
        _number(group["parameters"], top),
    ]


def _name(text: str, top: float) -> Html:
    return tag("text", text, x=_LABEL - 8, y=top + 11, text_anchor="end", class_="strong")


def _number(value: float, top: float) -> Html:
    return tag("text", short(value), x=_WIDTH, y=top + 11, text_anchor="end")


def _legend(colors: Mapping[str, str]) -> Html:
    entries = [("retain", PALETTE[0], "mark faint"), *((name, color, "mark") for name, color in colors.items())]
    return tag("ul", *(_key(*entry) for entry in entries), class_="legend")


def _key(name: str, color: str, kind: str) -> Html:
    square = tag("g", tag("rect", x=0, y=0, width=12, height=12, class_=kind), class_=color_class(color))
    return tag("li", tag("svg", square, viewBox="0 0 12 12", aria_hidden="true"), tag("span", f"{name} units"))


def _numbers(partition: Mapping[str, Any]) -> Html:
    owners = ["retain", *partition["domains"], "joint"]
    rows = [
        [f"layer {layer['layer']}", *(f"{layer['parameters'][owner]:,}" for owner in owners)]
        for layer in partition["layers"]
    ]
    outside = {
        "joint": partition["parameters"]["joint"] - sum(layer["parameters"]["joint"] for layer in partition["layers"])
    }
    rows.append(["outside the layers", *(f"{outside.get(owner, 0):,}" for owner in owners)])
    rows.append(["all", *(f"{partition['parameters'][owner]:,}" for owner in owners)])
    return details("numbers", table(["parameters", *owners], rows))
