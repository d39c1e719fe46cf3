"""Interrupts a job in some way, lets it go on, and compares its end with that of a whole run."""

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from ..case import Found
from .jobs import JOBS, TRAINED, Job, prepare
from .processes import POLL_SECONDS, Child

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
#: Ways to interrupt; a trial's name begins with one.
WAYS = ("SIGKILL", "SIGINT", "SIGTERM", "full disk", "second run")
_LONGEST = 1200  # seconds of one run, beside others
_LENGTH = 1200  # of what is told of a trial
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
    """

    def __init__(self, root: Path):
        self.root = root
        self._wholes: dict[str, Whole] = {}

    def prepare(self) -> None:
        """Write what the jobs read, a trained model too."""
        trained = JOBS[0]
        self._expect(Child(lambda: prepare(self.root)))
        self._expect(Child(lambda: trained.run(self.root, self.root / TRAINED)))

    def whole(self, job: Job) -> Whole:
        """The job's undisturbed run."""
        if job.name not in self._wholes:
            folder = self._folder()
            child = Child(lambda: job.run(self.root, folder))
            used = 0.0
            while child.wait(0.005) is None:
                used = max(used, child.cpu_seconds())
            self._expect(child)
            child.kill_all()  # what it left behind
            self._wholes[job.name] = Whole(job, used, job.end(folder))
            shutil.rmtree(folder.parent)
        return self._wholes[job.name]

    def kill(self, job: Job, number: int, rng: np.random.Generator) -> Iterator[Found]:
        """SIGKILL at random moments, to the process alone or to all that it began.

        What goes on after a kill is killed in turn; only after ``number`` of them a run comes to
        the end that is compared. Where one does so before its moment, another one begins.
        """
        while number > 0:
            moments, found = self._kill_in_succession(job, number, rng)
            number -= len(moments)
            text = ", ".join(moments)
            for index in range(1, len(moments) + 1):
                name = f"SIGKILL: {index} of {len(moments)} at {text}"
                yield Found(job.name, name, found.verdict, found.text)

    def _kill_in_succession(
        self, job: Job, number: int, rng: np.random.Generator
    ) -> tuple[list[str], Found]:
        whole, folder = self.whole(job), self._folder()
        run, moments = job.run, []
        while len(moments) < number:
            moment = float(rng.uniform(0, 1.0))
            child = self._started(run, folder, moment * whole.cpu_seconds)
            if child.poll() is not None:
                break
            moments.append(f"{moment:.0%}")
            if rng.random() < 0.5:
                child.send(signal.SIGKILL)
                child.wait(60)
                if child.leaves(_TO_END):
                    child.kill_all()
                    return moments, self._found(job, "SIGKILL", "orphans", folder)
            child.kill_all()
            run = job.again or job.run
        return moments, self._go_on(whole, "SIGKILL", folder)

    def interrupt(self, job: Job, number: int, rng: np.random.Generator) -> Found:
        """SIGINT or SIGTERM at a random moment."""
        whole, folder = self.whole(job), self._folder()
        moment = float(rng.uniform(0.02, 0.98))
        child = self._started(job.run, folder, moment * whole.cpu_seconds)
        name = f"{signal.Signals(number).name}: at {moment:.0%}"
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
        return self._go_on(whole, name, folder)

    def fill(self, job: Job, longest_file: int) -> Found:
        """Files may not be longer, as on a full disk; then they may."""
        whole, folder = self.whole(job), self._folder()
        child = Child(lambda: job.run(self.root, folder), longest_file)
        name = f"full disk: files of at most {longest_file} bytes"
        if child.wait(_LONGEST) is None:
            child.kill_all()
            return self._found(job, name, "hang", folder)
        output = child.output()
        child.kill_all()
        if child.poll() == 0:
            return self._go_on(whole, name, folder)  # none is longer
        if "Traceback" in output:
            return self._found(job, name, "traceback", folder, output)
        half = [path.name for path in _half_files(folder, longest_file)]
        if half:
            return self._found(job, name, "half file", folder, str(half))
        return self._go_on(whole, name, folder)

    def double(self, job: Job, moment: float) -> Found:
        """A second run in the place of one that is at work, which has written something there."""
        whole, folder = self.whole(job), self._folder()
        first = self._started(job.run, folder, moment * whole.cpu_seconds)
        while first.poll() is None and not any(folder.rglob("*")):
            time.sleep(POLL_SECONDS)
        first.send(signal.SIGSTOP)
        second = Child(lambda: (job.again or job.run)(self.root, folder))
        status, output = second.wait(_LONGEST), second.output()
        second.kill_all()
        stopped = first.poll() is None
        first.send(signal.SIGCONT)
        first.wait(_LONGEST)
        first.kill_all()
        name = f"second run: beside one at {moment:.0%}"
        if stopped and status in (0, None) and not (status == 0 and job.may_share):
            return self._found(job, name, "accepted" if status == 0 else "hang", folder, output)
        if "Traceback" in output + first.output():
            return self._found(job, name, "traceback", folder, output + first.output())
        if first.poll() != 0:
            return self._found(job, name, "fails", folder, first.output())
        return self._compare(whole, name, folder, first.output())

    def _started(self, run, folder: Path, cpu_seconds: float) -> Child:
        child = Child(lambda: run(self.root, folder))
        child.wait_for(cpu_seconds, _LONGEST)
        return child

    def _go_on(self, whole: Whole, name: str, folder: Path) -> Found:
        run = whole.job.again or whole.job.run
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
        shutil.rmtree(folder.parent, ignore_errors=True)
        text = text[text.rfind("Traceback") :] if "Traceback" in text else text[-_LENGTH:]
        return Found(job.name, name, verdict, " ".join(text[:_LENGTH].split()))

    def _folder(self) -> Path:
        """A place of its own for a job, where nothing is yet."""
        return Path(mkdtemp(dir=self.root)) / "job"

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
