"""Interrupts a job in some way, lets it go on, and compares its end with that of a whole run."""

import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..case import Found
from .jobs import JOBS, TRAINED, Job, prepare
from .processes import Child

#: What may come of a trial; the first is right.
VERDICTS = (
    "equal",  # the end of the run that nothing interrupted
    "differs",  # another one
    "fails",  # it does not go on
    "traceback",  # in place of one line
    "orphans",  # processes are left
    "half file",  # an unfinished file stays
    "accepted",  # a second run in the same place was not refused
    "hang",
)
_LONGEST = 1200  # seconds of one run, beside others
_TO_END = 60.0  # for what a run started, after its end


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupts."""

    job: Job
    cpu_seconds: float
    end: Mapping[str, object]


class Bench:
    """A folder in which jobs are tried.

    Args:
        root: an empty folder.
        seed: of the moments of kills and signals.
    """

    def __init__(self, root: Path, seed: int):
        self.root = root
        self.rng = np.random.default_rng(seed)
        self._number = 0
        self._wholes: dict[str, Whole] = {}

    def prepare(self) -> None:
        """Write what the jobs read, a trained model too."""
        trained = JOBS[0]
        self._expect(Child(lambda: prepare(self.root)))
        self._expect(Child(lambda: trained.run(self.root, self.root / TRAINED)))

    def whole(self, job: Job) -> Whole:
        """The job's undisturbed run."""
        if job.name not in self._wholes:
            folder = self._folder("whole")
            child = Child(lambda: job.run(self.root, folder))
            used = 0.0
            while child.wait(0.005) is None:
                used = max(used, child.cpu_seconds())
            self._expect(child)
            child.kill_all()  # what it left behind
            self._wholes[job.name] = Whole(job, used, job.end(folder))
            shutil.rmtree(folder)
        return self._wholes[job.name]

    def kill(self, job: Job) -> Found:
        """SIGKILL at a random moment, to the process alone or to all that it started."""
        whole, folder = self.whole(job), self._folder("kill")
        moment = float(self.rng.uniform(0, 1.02))
        child = self._started(job.run, folder, moment * whole.cpu_seconds)
        name = f"SIGKILL at {moment:.0%}"
        if self.rng.random() < 0.5:
            child.send(signal.SIGKILL)
            child.wait(60)
            if child.leaves(_TO_END):
                child.kill_all()
                return self._found(job, name, "orphans", folder)
        child.kill_all()
        return self._go_on(whole, name, folder, again=True)

    def interrupt(self, job: Job, number: int) -> Found:
        """SIGINT or SIGTERM at a random moment."""
        whole, folder = self.whole(job), self._folder("signal")
        moment = float(self.rng.uniform(0.02, 0.98))
        child = self._started(job.run, folder, moment * whole.cpu_seconds)
        name = f"{signal.Signals(number).name} at {moment:.0%}"
        child.send(number)
        if child.wait(_LONGEST) is None:
            child.kill_all()
            return self._found(job, name, "hang", folder)
        left = child.leaves(_TO_END)
        output = child.output()
        child.kill_all()
        if left:
            return self._found(job, name, "orphans", folder)
        if "Traceback" in output:
            return self._found(job, name, "traceback", folder, output)
        return self._go_on(whole, name, folder, again=True)

    def fill(self, job: Job, longest_file: int) -> Found:
        """Files may not be longer, as on a full disk; then they may."""
        whole, folder = self.whole(job), self._folder("full")
        child = Child(lambda: job.run(self.root, folder), longest_file)
        name = f"files of at most {longest_file} bytes"
        if child.wait(_LONGEST) is None:
            child.kill_all()
            return self._found(job, name, "hang", folder)
        output = child.output()
        child.kill_all()
        if child.poll() == 0:
            return self._go_on(whole, name, folder, again=True)  # none is longer
        if "Traceback" in output:
            return self._found(job, name, "traceback", folder, output)
        half = [path.name for path in _half_files(folder, longest_file)]
        if half:
            return self._found(job, name, "half file", folder, str(half))
        return self._go_on(whole, name, folder, again=True)

    def double(self, job: Job) -> Found:
        """A second run in the place of one that is at work."""
        whole, folder = self.whole(job), self._folder("double")
        first = self._started(job.run, folder, 0.6 * whole.cpu_seconds)
        first.send(signal.SIGSTOP)
        second = Child(lambda: (job.again or job.run)(self.root, folder))
        status, output = second.wait(_LONGEST), second.output()
        second.kill_all()
        stopped = first.poll() is None
        first.send(signal.SIGCONT)
        first.wait(_LONGEST)
        first.kill_all()
        name = "a second run"
        if stopped and status in (0, None):
            return self._found(job, name, "accepted" if status == 0 else "hang", folder, output)
        if "Traceback" in output:
            return self._found(job, name, "traceback", folder, output)
        return self._compare(whole, name, folder, first.output())

    def _started(self, run, folder: Path, cpu_seconds: float) -> Child:
        child = Child(lambda: run(self.root, folder))
        child.wait_for(cpu_seconds, _LONGEST)
        return child

    def _go_on(self, whole: Whole, name: str, folder: Path, *, again: bool) -> Found:
        run = (whole.job.again if again else None) or whole.job.run
        child = Child(lambda: run(self.root, folder))
        status, output = child.wait(_LONGEST), child.output()
        child.kill_all()
        if status is None:
            return self._found(whole.job, name, "hang", folder, output)
        if status != 0:
            return self._found(whole.job, name, "fails", folder, output)
        return self._compare(whole, name, folder, output)

    def _compare(self, whole: Whole, name: str, folder: Path, output: str) -> Found:
        try:
            end = dict(whole.job.end(folder))
        except (OSError, ValueError, LookupError) as error:
            return self._found(whole.job, name, "differs", folder, f"{error!r}; {output[-300:]}")
        keys = [key for key in {**whole.end, **end} if whole.end.get(key) != end.get(key)]
        if keys:
            text = "; ".join(f"{k}: {str(end.get(k))[:80]}" for k in keys[:6])
            return self._found(whole.job, name, "differs", folder, text)
        return self._found(whole.job, name, "equal", folder)

    def _found(self, job: Job, name: str, verdict: str, folder: Path, text: str = "") -> Found:
        shutil.rmtree(folder, ignore_errors=True)
        return Found(job.name, name, verdict, " ".join(text[-600:].split()))

    def _folder(self, name: str) -> Path:
        self._number += 1
        return self.root / f"{name}_{self._number}"

    @staticmethod
    def _expect(child: Child) -> None:
        if child.wait(_LONGEST) != 0:
            raise RuntimeError(child.output()[-2000:])


def _half_files(folder: Path, size: int) -> Iterator[Path]:
    """Files that end where no more could be written, but for those that grow line by line."""
    growing = ("log.txt", "metrics.json", "console.txt", "masks.json.partial")
    for path in filter(Path.is_file, folder.rglob("*")):
        is_growing = path.name in growing or "tfevents" in path.name
        is_full = path.stat().st_size == size and not is_growing
        if is_full or path.name.endswith(".part"):
            yield path


def kill_campaign(bench: Bench, number: int, names=()) -> Iterator[Found]:
    """Kill jobs so often, by their shares; then signals, a full disk and second runs."""
    bench.prepare()
    jobs = [job for job in JOBS if not names or job.name in names]
    total = sum(job.share for job in jobs)
    shares = [number * job.share // total for job in jobs]
    for index in range(number - sum(shares)):
        shares[index % len(jobs)] += 1
    for job, share in zip(jobs, shares, strict=True):
        for _ in range(share):
            yield bench.kill(job)
    for job in jobs:
        if job.name == "toy_experiments" and not names:
            continue  # minutes each; the same trainings as above
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            yield bench.interrupt(job, signal_number)
        for longest_file in (100, 3000, 60_000):
            yield bench.fill(job, longest_file)
    for job in jobs:
        if job.name in ("training", "mean teacher", "prepare_masks"):
            yield bench.double(job)
