"""What the folders of a sweep's runs say: which are complete, running, failed; and their records in one table.

Nothing here needs torch.
"""

import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rich.console import Console
from rich.table import Table

from sgtm.config import ConfigError, load, write
from sgtm.records import CONFIGS, METRICS, RECORD, RESULTS, read_records
from sgtm.train.sweep import Point, setting

LOG, ATTEMPT = "log.txt", "sweep.json"
State = Literal["missing", "queued", "running", "stopped", "failed", "complete"]
_STYLES = {"complete": "green", "failed": "bold red", "running": "cyan", "queued": "cyan", "stopped": "yellow"}
_UNDER_WAY = {"READY", "PENDING", "CONFIGURING", "REQUEUED", "RUNNING", "COMPLETING", "SUSPENDED", "PREEMPTED"}


@dataclass(frozen=True)
class Attempt:
    """The last attempt at a run, as its ``sweep.json`` has it.

    Args:
        started: seconds since 1970; 0 once it has ended.
        seconds: of all attempts that have ended.
        code: exit code; None while it is under way, or when it was stopped.
        job: of a cluster.
    """

    started: float = 0.0
    seconds: float = 0.0
    code: int | None = None
    job: str | None = None

    def write(self, folder: Path) -> None:
        write(folder / ATTEMPT, json.dumps(asdict(self)))


@dataclass(frozen=True)
class Status:
    """Where a run stands: its state, the steps of which there is a record, and the seconds that it took so far."""

    point: Point
    state: State
    step: int
    seconds: float | None


def lock_log(folder: Path) -> BinaryIO | None:
    """The run's log, opened for appending and locked; None if a process of the run has it.

    The lock lasts as long as any process has this file open, so a run bears it by its output, even one whose sweep was
    killed; and a lock cannot be left behind.
    """
    log = (folder / LOG).open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    except OSError as error:
        raise ConfigError(f"{folder}: files cannot be locked there ({error}); choose another --out") from error
    return log


def is_complete(folder: Path) -> bool:
    return (folder / "model" / "config.json").is_file()


def has_begun(folder: Path) -> bool:
    """Whether a step may have been taken (a run that was refused leaves no run.json)."""
    return (folder / "run.json").is_file()


def check_same(point: Point) -> None:
    """Raise a ConfigError if the point's folder holds another run than the point."""
    if not has_begun(point.folder):
        return
    if changed := differing(asdict(load(point.folder / "config.yaml")), asdict(point.config)):
        raise ConfigError(
            f"{point.folder} holds a run with another {changed}; choose another --out, or remove that folder"
        )


def differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that are not the same, and how the first of them changed; nothing if all are."""
    old, new = _flat(before), _flat(now)
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    if not changed:
        return ""
    return f"{', '.join(changed)} ({changed[0]}: {old.get(changed[0])} there, {new.get(changed[0])} here)"


def read_attempt(folder: Path) -> Attempt:
    """The last attempt; one that never started if there is none."""
    path = folder / ATTEMPT
    return Attempt(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Attempt()


def seconds_so_far(folder: Path, attempt: Attempt, is_running: bool) -> float:
    """Seconds of all attempts; one that was killed with its sweep lasted until its last word."""
    if not attempt.started:
        return attempt.seconds
    end = time.time() if is_running else (folder / LOG).stat().st_mtime
    return attempt.seconds + max(0.0, end - attempt.started)


def statuses(points: Sequence[Point]) -> list[Status]:
    """Where each run stands."""
    attempts = {point.name: read_attempt(point.folder) for point in points}
    queued = _queued({a.job for a in attempts.values() if a.job}) if any(a.job for a in attempts.values()) else set()
    return [_status(point, attempts[point.name], attempts[point.name].job in queued) for point in points]


def show(points: Sequence[Point], out: Path) -> None:
    """Print where the runs stand, and collect their results; of those that have begun as they were started."""
    points = [_as_started(point) for point in points]
    print_statuses(statuses(points))
    if results := collect(points, out):
        print(f"results: {results}")


def _as_started(point: Point) -> Point:
    """The point with its folder's configuration: options of that command line may be none of this one's."""
    if not has_begun(point.folder):
        return point
    config = load(point.folder / "config.yaml")
    return replace(point, config=config, settings={key: setting(config, key) for key in point.settings})


def print_statuses(found: Sequence[Status]) -> None:
    """One row a run, and how many there are of each state."""
    table = Table(title_justify="left")
    for name in ("run", "state", "steps", "time"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right")
    for s in found:
        steps = f"{s.step:,} of {s.point.config.train.steps:,}" if s.step else ""
        table.add_row(s.point.name, f"[{_STYLES.get(s.state, 'dim')}]{s.state}[/]", steps, duration(s.seconds))
    Console(width=max(100, Console().width)).print(table)
    states = [s.state for s in found]
    print(f"{len(found)} runs: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))


def duration(seconds: float | None) -> str:
    """Seconds as 48 s, 3 min or 5.2 h; nothing for none."""
    if not seconds:
        return ""
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"


def collect(points: Sequence[Point], out: Path) -> Path | None:
    """Write the records of all runs to ``out/results.parquet``; None where there are none yet.

    A row is a record of ``metrics.jsonl``, with the run's name, seed and varied settings before it. The file's metadata
    has the whole configurations.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        _about(point) | {key: record.get(key) for key in RECORD}
        for point in points
        for record in read_records(point.folder / METRICS)
    ]
    if not rows:
        return None
    begun = {row["run"] for row in rows}
    configs = {point.name: asdict(point.config) for point in points if point.name in begun}
    columns = {name: _column(pa, [row[name] for row in rows]) for name in rows[0]}
    table = pa.table(columns).replace_schema_metadata({CONFIGS: json.dumps(configs)})
    partial = out / f"{RESULTS}.partial-{os.getpid()}"
    pq.write_table(table, partial)
    partial.replace(out / RESULTS)
    return out / RESULTS


def _about(point: Point) -> dict[str, Any]:
    return {"run": point.name, "seed": point.config.seed, **point.settings}


def _column(pa: Any, values: list[Any]) -> Any:
    """An arrow column; values of several kinds become text, lists and mappings JSON."""
    plain = [json.dumps(v) if isinstance(v, list | dict) else v for v in values]
    try:
        return pa.array(plain)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if v is None else str(v) for v in plain])


def _status(point: Point, attempt: Attempt, is_queued: bool) -> Status:
    folder = point.folder
    state: State = "missing"
    if is_complete(folder):
        state = "complete"
    elif _is_running(folder):
        state = "running"
    elif is_queued:
        state = "queued"
    elif attempt.code:
        state = "failed"
    elif has_begun(folder):
        state = "stopped"
    step = max((r["step"] for r in read_records(folder / METRICS)), default=0)
    return Status(point, state, step, seconds_so_far(folder, attempt, state == "running"))


def _is_running(folder: Path) -> bool:
    try:
        log = (folder / LOG).open("rb")
    except FileNotFoundError:
        return False
    with log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _queued(jobs: set[str]) -> set[str]:
    """Those of the Slurm ``jobs`` that wait or run; asked with one call for all."""
    from submitit import SlurmJob

    numbers = [job.partition(":")[2] for job in jobs if job.startswith("slurm:")]
    found: list[SlurmJob[None]] = [SlurmJob(folder=".", job_id=number) for number in numbers]
    return {f"slurm:{job.job_id}" for job in found if job.state.upper() in _UNDER_WAY}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
