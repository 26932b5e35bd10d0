"""Photon counts in several energy bins in, one attenuation image a bin out (NIfTI, bins on the last axis).

python examples/deploy/spectral -i INPUT -o OUTPUT -m tikhonov_petmrct
"""

from pathlib import Path

from multirecon.interop.deploy.application import ReconstructionApplication, run
from multirecon.interop.deploy.operators import MeasurementLoader, NiftiWriter


class SpectralReconstruction(ReconstructionApplication):
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
    run(SpectralReconstruction, Path(__file__).with_name("app.yaml"))
