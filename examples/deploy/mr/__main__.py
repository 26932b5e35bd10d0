"""Undersampled multi-coil k-space in, MR images out (NIfTI), with a copy of the raw data beside them.

python examples/deploy/mr -i INPUT -o OUTPUT -m sense_mr
"""

from pathlib import Path

from multirecon.interop.deploy.application import ReconstructionApplication, run
from multirecon.interop.deploy.operators import MeasurementLoader, MeasurementWriter, NiftiWriter


class MRReconstruction(ReconstructionApplication):
    """Loader, reconstruction, writers."""

    def compose(self) -> None:
        """Connect the operators."""
        context = self.context()
        loader = MeasurementLoader(self, path=context.input_path, name="loader")
        reconstruction = self.reconstruction(context.model_path)
        self.add_flow(loader, reconstruction, {("item", "item")})
        nifti = NiftiWriter(self, path=context.output_path, name="nifti_writer")
        self.add_flow(reconstruction, nifti, {("images", "images")})
        raw = MeasurementWriter(self, path=Path(context.output_path) / "raw", name="raw_writer")
        self.add_flow(loader, raw, {("item", "item")})


if __name__ == "__main__":
    run(MRReconstruction, Path(__file__).with_name("app.yaml"))
