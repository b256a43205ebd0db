"""``sgtm report``: one self-contained page of a run, or of the runs of a sweep, from their record files."""

from collections.abc import Iterable
from pathlib import Path

from sgtm.config import ConfigError, write
from sgtm.plot.run_folder import read_run_folder
from sgtm.plot.run_page import run_page
from sgtm.plot.sweep_page import read_sweep_folder, sweep_page
from sgtm.records import METRICS, REPORT


def write_report(folder: Path, out: Path | None = None, relearnings: Iterable[Path] = ()) -> Path:
    """Write the page of a run or of a sweep; returns where.

    Args:
        out: the file; by default ``report.html`` in the folder.
        relearnings: folders of ``sgtm relearn`` that are not in the run's folder or beside it.

    Raises:
        ConfigError: neither a run nor a folder of runs.
    """
    out = out or folder / REPORT
    if (folder / METRICS).is_file():
        text = run_page(read_run_folder(folder, relearnings))
    else:
        text = sweep_page(folder, read_sweep_folder(folder))
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder to write {out.name} to; make it, or choose another --out")
    write(out, text)
    return out
