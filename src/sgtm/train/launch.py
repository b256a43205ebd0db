"""The runs of a sweep as processes of their own: on this machine's cores or GPUs, or as jobs of a cluster.

Each run is ``sgtm train FOLDER/config.yaml --run-dir FOLDER --resume``, its output goes to ``FOLDER/log.txt``, and what
is complete stays as it is: so a sweep that was killed, or is started twice, goes on where it was. Nothing here needs
torch but the check before the first run, and counting GPUs.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from sgtm.config import ConfigError, dump
from sgtm.train.states import (
    LOG,
    Attempt,
    check_same,
    collect,
    duration,
    has_begun,
    is_complete,
    lock_log,
    read_attempt,
    seconds_so_far,
    statuses,
)
from sgtm.train.sweep import Point

_POLL = 0.2  # seconds
_GRACE = 30.0  # seconds from SIGTERM to SIGKILL: torchrun needs some to stop its workers
_TAIL = 12  # lines of a failed run's log
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True)
class Slot:
    """What one run at a time has to itself.

    Args:
        devices: as in CUDA_VISIBLE_DEVICES; none on a CPU.
        processes: of the run; more than one start under torchrun.
        threads: of each process.
    """

    devices: tuple[str, ...] = ()
    processes: int = 1
    threads: int = 1

    def environment(self) -> dict[str, str]:
        """The environment of a run: more threads than cores make training many times slower."""
        own = {"OMP_NUM_THREADS": str(self.threads)} | dict(os.environ)
        own |= {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}  # a log that can be read, and is up to date
        return own | ({"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {})


@dataclass(frozen=True)
class Started:
    """A run under way."""

    point: Point
    process: subprocess.Popen[bytes]
    log: BinaryIO
    attempt: Attempt


def slots(devices: Sequence[str], processes: int = 1, jobs: int | None = None) -> list[Slot]:
    """What runs can have at the same time.

    Args:
        devices: GPUs of this machine; none = its CPU.
        processes: of each run, on one GPU each.
        jobs: runs at a time; by default one on a CPU, one for every ``processes`` GPUs otherwise.

    Raises:
        ConfigError: fewer GPUs than processes, or counts below 1.
    """
    if processes < 1 or (jobs is not None and jobs < 1):
        raise ConfigError(f"processes_per_run={processes} and jobs={jobs} must be at least 1")
    if devices and len(devices) < processes:
        raise ConfigError(f"processes_per_run={processes} is more than the {len(devices)} GPUs {','.join(devices)}")
    starts = range(0, len(devices) - processes + 1, processes)
    groups = [tuple(devices[i : i + processes]) for i in starts] if devices else [()]
    jobs = jobs or len(groups)
    threads = max(1, num_cores() // (jobs * processes))
    return [Slot(groups[i % len(groups)], processes, threads) for i in range(jobs)]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices(wanted: str | None) -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them: ``wanted`` (0,1), or all that there are.

    Raises:
        ConfigError: GPUs are wanted, and torch sees none.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0 and wanted is not None:
        raise ConfigError(f"devices={wanted}: torch finds no GPU on this machine; leave out --devices to use its CPU")
    named = wanted or os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [name.strip() for name in named.split(",")] if count else []


def run_sweep(
    points: Sequence[Point],
    out: Path,
    devices: str | None = None,
    processes: int = 1,
    jobs: int | None = None,
    slurm: Sequence[str] | None = None,
) -> None:
    """Check all of a sweep's runs, run or submit what is missing, and collect the results.

    Args:
        slurm: KEY=VALUE settings of the jobs; None runs here.

    Raises:
        ConfigError: a run that would be refused, before any is started; or some that failed, after the others ended.
        SystemExit: 130 if stopped.
    """
    for point in points:
        check_same(point)
    from sgtm.train.estimate import check

    check(points)
    if slurm is not None:
        _submit_missing(points, out, _values(slurm), processes)
        return
    try:
        failed = run_points(points, slots(visible_devices(devices), processes, jobs))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        results = collect(points, out)
    if results:
        print(f"results: {results}")
    if failed:
        names = ", ".join(point.name for point in failed)
        raise ConfigError(f"{len(failed)} of {len(points)} runs failed: {names}; the same command tries them again")


def run_points(points: Sequence[Point], places: Sequence[Slot]) -> list[Point]:
    """Run what is not complete, one run a slot at a time, and return those that failed.

    Runs that another process has (a second sweep over the same folder) are waited for, and taken over if they end
    before they are complete. Ctrl-C and SIGTERM stop the runs that were started; started again they go on from their
    last checkpoints.

    Raises:
        ConfigError: a folder holds another run.
        KeyboardInterrupt: stopped.
    """
    waiting = [point for point in points if not is_complete(point.folder)]
    _say(f"{len(points)} runs, {len(points) - len(waiting)} of them complete; {len(places)} at a time")
    begin, total, failed = time.monotonic(), len(waiting), list[Point]()
    under_way: dict[int, Started] = {}  # by the number of the slot
    with _stopping(under_way):
        while waiting or under_way:
            _fill(under_way, places, waiting)
            for index, started in list(under_way.items()):
                if started.process.poll() is not None:
                    del under_way[index]
                    done = total - len(waiting) - len(under_way)
                    left = (time.monotonic() - begin) / done * (total - done)
                    if not _end(started, left):
                        failed.append(started.point)
            time.sleep(_POLL)
    return failed


def start(point: Point, slot: Slot) -> Started | None:
    """Start a run, or go on with it; None if it is complete or another process has it.

    Raises:
        ConfigError: its folder holds another run.
    """
    point.folder.mkdir(parents=True, exist_ok=True)
    log = lock_log(point.folder)
    if log is None:
        return None
    if is_complete(point.folder):
        log.close()
        return None
    check_same(point)
    if not has_begun(point.folder):
        dump(point.config, point.folder / "config.yaml")
    before = read_attempt(point.folder)
    attempt = Attempt(time.time(), seconds_so_far(point.folder, before, is_running=False), job=before.job)
    attempt.write(point.folder)
    process = subprocess.Popen(
        command(point.folder, slot.processes),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=slot.environment(),
        start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops its runs
        preexec_fn=_prepare_process,
    )
    return Started(point, process, log, attempt)


def finish(started: Started, stopped: bool = False) -> bool:
    """Note how a run ended; whether it is complete."""
    code, folder = started.process.wait(), started.point.folder
    complete = is_complete(folder)
    seconds = started.attempt.seconds + time.time() - started.attempt.started
    noted = 0 if complete else None if stopped else code or 1
    Attempt(0.0, seconds, noted, started.attempt.job).write(folder)
    started.log.close()
    return complete


def stop(runs: Sequence[Started]) -> None:
    """Stop runs and all their processes; they can go on from their last checkpoints."""
    for started in runs:
        _signal(started, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    try:
        while time.monotonic() < deadline and any(s.process.poll() is None for s in runs):
            time.sleep(_POLL)
    finally:  # even if Ctrl-C is pressed again
        for started in runs:
            _signal(started, signal.SIGKILL)
            finish(started, stopped=True)


def command(folder: Path, processes: int) -> list[str]:
    """What trains the run in ``folder``, from the beginning or from its last checkpoint."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    train = ["sgtm.cli", "train", str(folder / "config.yaml"), "--run-dir", str(folder), "--resume"]
    return [sys.executable, "-m", *torchrun, *train]


def tail(folder: Path, lines: int = _TAIL) -> str:
    """The last lines of a run's log."""
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-lines:])


@dataclass(frozen=True)
class Job:
    """A run as a job of a cluster; when the job is preempted or runs out of time, submitit submits it again."""

    point: Point
    processes: int

    def __call__(self) -> None:
        slot = Slot(processes=self.processes, threads=max(1, num_cores() // self.processes))
        started = start(self.point, slot)
        if started is None:
            return
        try:
            if started.process.wait() == -signal.SIGTERM:
                time.sleep(_GRACE)  # preempted: Slurm sends SIGTERM to all, then SIGUSR2, at which submitit leaves here
        except BaseException:
            stop([started])
            raise
        if not finish(started):
            raise RuntimeError(
                f"{self.point.name} failed; the end of {self.point.folder / LOG}:\n{tail(self.point.folder)}"
            )

    def checkpoint(self) -> Any:
        """What submitit submits in place of a job that was stopped: the same, which goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(points: Sequence[Point], out: Path, settings: Mapping[str, Any], processes: int = 1) -> list[str]:
    """Submit each of ``points`` as a job, and return the jobs' names.

    Args:
        settings: of submitit's ``AutoExecutor.update_parameters`` (timeout_min, gpus_per_node, slurm_partition, ...);
            ``cluster`` is slurm unless it says local.

    Raises:
        ConfigError: no Slurm here, or settings that submitit refuses.
    """
    import submitit

    for point in points:
        point.folder.mkdir(parents=True, exist_ok=True)
    values = {"cluster": "slurm", "nodes": 1, "tasks_per_node": 1, "name": out.name, **settings}
    cluster = values.pop("cluster")
    try:
        executor = submitit.AutoExecutor(out.absolute() / "jobs", cluster=cluster)
        executor.update_parameters(**values)
        with executor.batch():
            jobs = [executor.submit(Job(point, processes)) for point in points]
    except (NameError, ValueError, AssertionError, RuntimeError, submitit.core.utils.FailedSubmissionError) as error:
        raise ConfigError(f"slurm: {' '.join(str(error).split())}") from error
    names = [f"{cluster}:{job.job_id}" for job in jobs]
    for point, name in zip(points, names, strict=True):
        Attempt(0.0, read_attempt(point.folder).seconds, job=name).write(point.folder)
    return names


def _submit_missing(points: Sequence[Point], out: Path, settings: Mapping[str, Any], processes: int) -> None:
    under_way = ("complete", "running", "queued")
    missing = [status.point for status in statuses(points) if status.state not in under_way]
    if missing:
        names = submit(missing, out, settings, processes)
        print("\n".join(f"{point.name}: {name}" for point, name in zip(missing, names, strict=True)))
    print(f"{len(missing)} runs submitted, {len(points) - len(missing)} complete or under way; --status shows them")


def _values(words: Sequence[str]) -> dict[str, Any]:
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--slurm {word}: settings are written KEY=VALUE (timeout_min=600)")
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


def _fill(under_way: dict[int, Started], places: Sequence[Slot], waiting: list[Point]) -> None:
    """Start a run in every free slot; what is complete by now leaves the queue."""
    for index, slot in enumerate(places):
        for point in [] if index in under_way else list(waiting):
            if is_complete(point.folder):
                waiting.remove(point)
            elif started := start(point, slot):
                waiting.remove(point)
                under_way[index] = started
                _say(f"{point.name}: {'goes on' if has_begun(point.folder) else 'begins'}")
                break


def _end(started: Started, left: float) -> bool:
    complete = finish(started)
    name, code = started.point.name, started.process.returncode
    if complete:
        took = duration(read_attempt(started.point.folder).seconds)
        _say(f"{name}: complete in {took}" + (f"; about {duration(left)} to go" if left else ""))
    else:
        how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        _say(f"{name}: {how}; the end of {started.point.folder / LOG}:\n{tail(started.point.folder)}")
    return complete


@contextmanager
def _stopping(under_way: Mapping[int, Started]) -> Iterator[None]:
    """Whatever ends the block, no run outlives it; SIGTERM ends it as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if under_way:
            _say(f"stopping {len(under_way)} runs; the same command goes on with them")
            stop(list(under_way.values()))
        signal.signal(signal.SIGTERM, before)


def _signal(started: Started, number: int) -> None:
    """To all processes of the run: the group that it leads."""
    with suppress(ProcessLookupError):
        os.killpg(started.process.pid, number)


def _prepare_process() -> None:
    """A run ends with its sweep, even if that is killed with SIGKILL (Linux; elsewhere it goes on, and is waited for).

    Slurm announces the end of a job with SIGUSR2 to all its processes; it is the job that answers, not the run.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _say(text: str) -> None:
    print(text, flush=True)
