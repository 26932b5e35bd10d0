"""A worker without a process: the same job, run here, where starting a process would only cost time."""

from multirecon.harness import worker


class InlineWorker:
    """Stands in for :class:`multirecon.harness.process.Worker`."""

    def __init__(self, folder, **_):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, job, *, timeout):
        try:
            return worker.run_job(dict(job))
        except Exception as error:
            return {"status": "failed", "reason": worker.describe(error)}
