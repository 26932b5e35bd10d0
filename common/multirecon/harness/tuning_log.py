"""The log of a bundle's tuning: every trial, one line of a CSV file each."""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

from .tuning_search import STAGES, Trial

__all__ = ["LoggedTrial", "TrialLog"]

COLUMNS = ("run", "kind", "trial", "stage", "settings", "score", "seconds")


@dataclass(frozen=True)
class LoggedTrial:
    """One line of the log.

    Args:
        run: hash of everything that the score depends on but the settings.
        kind: kind of block.
        trial: number of the trial, from zero.
        stage: how the settings were chosen.
        outcome: settings and score.
        seconds: run time.
    """

    run: str
    kind: str
    trial: int
    stage: str
    outcome: Trial
    seconds: float

    def row(self) -> list[str]:
        """Return the texts of the line; a failed trial has no score."""
        settings = " ".join(f"{name}={value:.12g}" for name, value in self.outcome.settings.items())
        score = f"{self.outcome.score:.6f}" if math.isfinite(self.outcome.score) else ""
        return [self.run, self.kind, str(self.trial), self.stage, settings, score, f"{self.seconds:.2f}"]

    @classmethod
    def of(cls, row: list[str]) -> LoggedTrial:
        """Return the trial of a line.

        Raises:
            ValueError: if it is not one (the last line of a run that was killed).
        """
        run, kind, trial, stage, settings, score, seconds = row
        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {STAGES}, got {stage!r}")
        pairs = (text.partition("=") for text in settings.split())
        values = {name: float(value) for name, _, value in pairs}
        outcome = Trial(values, float(score) if score else -math.inf)
        return cls(run, kind, int(trial), stage, outcome, float(seconds))


class TrialLog:
    """A CSV file to which trials are appended, and from which those of an earlier run are read.

    Args:
        path: the file; it is made with the first trial.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def trials(self, run: str) -> list[Trial]:
        """Return the trials of a run, in order, up to the first that is missing."""
        found: dict[int, Trial] = {}
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a line without its end was cut off by a kill
        for row in csv.reader(io.StringIO(whole)):
            try:
                logged = LoggedTrial.of(row)
            except ValueError:
                continue  # the header, or what is left of a killed run
            if logged.run == run:
                found.setdefault(logged.trial, logged.outcome)
        ordered: list[Trial] = []
        while len(ordered) in found:
            ordered.append(found[len(ordered)])
        return ordered

    def append(self, trial: LoggedTrial) -> None:
        """Append a trial; what it returns from is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            lead = b""
            if size:
                file.seek(size - 1)
                lead = b"" if file.read(1) == b"\n" else b"\n"
            rows = [trial.row()] if size else [list(COLUMNS), trial.row()]
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            file.write(lead + text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())
