"""PET and CT counts of one examination in, both images out (NIfTI); the CT leaves in HU.

python examples/deploy/petct -i INPUT -o OUTPUT -m tikhonov_petmrct
"""

from pathlib import Path

from multirecon.interop.deploy.application import ReconstructionApplication, run
from multirecon.interop.deploy.operators import MeasurementLoader, NiftiWriter


class PETCTReconstruction(ReconstructionApplication):
    """Loader, reconstruction, writers."""

    def compose(self) -> None:
        """Connect the operators."""
        context = self.context()
        loader = MeasurementLoader(self, path=context.input_path, name="loader")
        reconstruction = self.reconstruction(context.model_path)
        self.add_flow(loader, reconstruction, {("item", "item")})
        nifti = NiftiWriter(self, path=context.output_path, name="nifti_writer")
        self.add_flow(reconstruction, nifti, {("images", "images")})


if __name__ == "__main__":
    run(PETCTReconstruction, Path(__file__).with_name("app.yaml"))
