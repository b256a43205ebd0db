"""What a prepared Wikipedia holds, topic by topic: how much text, and on which side of the removal it stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgtm.config import ConfigError, check_shape, read_json
from sgtm.plot.picture import save

_ANEW = "prepare the data anew"

_COLORS = {"adjacent": "#e69f00", "retain": "#8a8a8a"}  # domains have those below
_DOMAINS = ("#009e73", "#d55e00", "#0072b2", "#cc79a7")
_MILLION = 1e6


@dataclass(frozen=True)
class Topic:
    """One topic of prepared data.

    Args:
        category: a domain, adjacent or retain.
        tokens, documents: of both splits.
        test: share of the tokens that is in the test split.
    """

    name: str
    category: str
    tokens: int
    documents: int
    test: float


def read_topics(data: Path) -> list[Topic]:
    """The topics of a folder that ``sgtm data wikipedia`` wrote, the largest first.

    Raises:
        ConfigError: no such data, or it has no topics.
    """
    file = data / "manifest.json"
    if not file.is_file():
        raise ConfigError(f"{data} has no manifest.json; give a folder that `sgtm data wikipedia` wrote")
    manifest = read_json(file, _ANEW)
    if "topics" not in manifest:
        raise ConfigError(f"{data} has no topics; `sgtm data wikipedia` writes them")
    counts = {"train": dict, "test": dict}
    shape = {"origin": {"forget": str, "adjacent": str}, "topics": counts}
    check_shape(manifest, shape, file, _ANEW)
    categories = _categories(manifest["origin"])
    train, test = (manifest["topics"][split] for split in ("train", "test"))
    for of_split in (train, test):
        check_shape(list(of_split.values()), [{"tokens": int, "documents": int}], file, _ANEW)
    found = [_topic(name, categories, train.get(name), test.get(name)) for name in {**train, **test}]
    return sorted(found, key=lambda topic: -topic.tokens)


def _categories(origin: dict[str, str]) -> dict[str, str]:
    """Category of each name that the data was prepared with; a topic belongs to the longest one that begins it."""
    named = [word.strip() for word in origin["forget"].split(",")]
    found = {name: domain or "forget" for domain, _, name in (word.rpartition("=") for word in named)}
    return found | {word.strip(): "adjacent" for word in origin["adjacent"].split(",") if word.strip()}


def _topic(name: str, categories: dict[str, str], train: Any, test: Any) -> Topic:
    begins = [word for word in categories if name == word or name.startswith(f"{word}.")]
    category = categories[max(begins, key=len)] if begins else "retain"
    tokens = [0 if split is None else split["tokens"] for split in (train, test)]
    documents = [0 if split is None else split["documents"] for split in (train, test)]
    return Topic(name, category, sum(tokens), sum(documents), tokens[1] / max(1, sum(tokens)))


def topics(data: Path, out: Path, number: int = 40) -> None:
    """Draw the tokens of the largest topics, by category; what is tested on is darker.

    Args:
        number: topics to draw, at most; those that are removed or adjacent always.

    Raises:
        ConfigError: see ``read_topics``.
    """
    found = read_topics(data)
    shown = [t for i, t in enumerate(found) if i < number or t.category != "retain"]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    domains = [c for c in dict.fromkeys(t.category for t in found) if c not in _COLORS]
    colors = _COLORS | dict(zip(domains, _DOMAINS, strict=False))
    figure, axes = plt.subplots(figsize=(8.2, 1.0 + 0.21 * len(shown)), layout="constrained")
    for place, topic in enumerate(shown):
        color = colors.get(topic.category, _DOMAINS[-1])
        axes.barh(place, topic.tokens / _MILLION, color=color, alpha=0.55, height=0.75)
        axes.barh(place, topic.test * topic.tokens / _MILLION, color=color, height=0.75)
    axes.set_yticks(range(len(shown)), [f"{t.name} ({t.documents:,})" for t in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("tokens (millions); darker: in the test split; in brackets: documents")
    handles = [Rectangle((0, 0), 1, 1, color=colors.get(c, _DOMAINS[-1])) for c in (*domains, *_COLORS)]
    axes.legend(handles, [*domains, *_COLORS], frameon=False, loc="lower right")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    save(figure, out)
