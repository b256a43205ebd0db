"""A figure as a file."""

from pathlib import Path
from typing import Any

from sgtm.config import ConfigError


def save(figure: Any, out: Path) -> None:
    """Write ``figure`` (of matplotlib) and close it.

    Raises:
        ConfigError: ``out`` does not end as a picture does.
    """
    from matplotlib import pyplot as plt

    kinds = sorted(figure.canvas.get_supported_filetypes())
    if out.suffix.lower().removeprefix(".") not in kinds:
        raise ConfigError(f"{out} ends in {out.suffix or 'nothing'}, which is no kind of picture; use one of {kinds}")
    figure.savefig(out, dpi=160)
    plt.close(figure)
