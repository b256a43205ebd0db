"""Colours of a page's figures: those of the figures on paper, made legible on the page's light and dark ground."""

from sgtm.plot.tradeoff import COLORS, OTHER

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#6699cc", "#aa4466", "#117733")
LIGHT, DARK = "#ffffff", "#15181c"  # the grounds; page.css has the same
_CONTRAST = {LIGHT: 3.2, DARK: 5.0}  # with the ground; WCAG 2.2 asks 3 of graphics, and thin lines glow less
_STEPS = 50

Rgb = tuple[float, float, float]


def color_class(color: str) -> str:
    """The class of elements in ``color``.

    Raises:
        ValueError: not one of the page's colours.
    """
    if color not in _known():
        raise ValueError(f"{color!r} is no colour of a page; use one of COLORS, OTHER or PALETTE")
    return f"c{color.removeprefix('#')}"


def stylesheet() -> str:
    """The classes of all colours, in both schemes."""
    light = "".join(f".{color_class(c)}{{color:{legible(c, LIGHT)}}}" for c in _known())
    dark = "".join(f".{color_class(c)}{{color:{legible(c, DARK)}}}" for c in _known())
    return f"{light}\n@media (prefers-color-scheme:dark){{{dark}}}\n"


def legible(color: str, ground: str) -> str:
    """``color``, as far towards white or black as it takes to stand out from ``ground`` (LIGHT or DARK)."""
    goal = (0.0, 0.0, 0.0) if _luminance(_rgb(ground)) > 0.5 else (255.0, 255.0, 255.0)
    mixes = (_mix(_rgb(color), goal, i / _STEPS) for i in range(_STEPS + 1))
    return _hex(next(mix for mix in mixes if contrast(_hex(mix), ground) >= _CONTRAST[ground]))


def paler(color: str, share: float) -> str:
    """``color``, a ``share`` of the way to white."""
    return _hex(_mix(_rgb(color), (255.0, 255.0, 255.0), share))


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(_rgb(one)), _luminance(_rgb(other))))
    return (high + 0.05) / (low + 0.05)


def _known() -> tuple[str, ...]:
    return tuple(dict.fromkeys((*COLORS.values(), OTHER, *PALETTE)))


def _rgb(color: str) -> Rgb:
    red, green, blue = (float(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    return red, green, blue


def _hex(rgb: Rgb) -> str:
    return "#" + "".join(f"{round(part):02x}" for part in rgb)


def _mix(one: Rgb, other: Rgb, share: float) -> Rgb:
    red, green, blue = (a + share * (b - a) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _luminance(rgb: Rgb) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
