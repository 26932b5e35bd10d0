"""The measurement that comes with an archive, so that it runs with no data at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..bundle.folder import Bundle
from ..bundle.loader import load
from ..engines import safe_name
from ..measurement import Measurement

__all__ = ["sample_measurement"]


def sample_measurement(bundle: Bundle) -> tuple[str, bytes]:
    """Return name and content of a measurement file: the first sample of the bundle's default, as it simulates it.

    Args:
        bundle: the bundle, in a checkout.

    Returns:
        File name ``<id>.h5``, and the bytes of the file.

    Raises:
        ValueError: if the bundle makes no measurement of its default sample.
    """
    with one_thread(), tempfile.TemporaryDirectory() as scratch:
        workflow = load(bundle, device="$torch.device('cpu')", output_dir=scratch)
        evaluator = workflow.evaluator
        batch = evaluator.data_loader.collate_fn([workflow.dataset[0]])
        with torch.no_grad():
            measurement, _ = evaluator.prepare_batch(batch, torch.device("cpu"), False)
            if not isinstance(measurement, Measurement):  # a bundle that takes images
                measurement = workflow.inferer.source(measurement)
        if not isinstance(measurement, Measurement):
            raise ValueError(f"bundle {bundle.name!r}: expected a measurement of its default sample, "
                             f"got {type(measurement).__name__}")  # fmt: skip
        name = f"{safe_name(str(batch['id'][0]))}.h5"
        return name, measurement.save(Path(scratch) / name).read_bytes()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sum in one order, so that a machine's number of cores does not change the last bits."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
