"""A T1-weighted DICOM series in, a synthetic CT out: as a DICOM series of derived images in HU, and as NIfTI.

python examples/deploy/synthesis -i INPUT -o OUTPUT -m wavelet_diffusion_petmrct
"""

from pathlib import Path

from multirecon.interop.deploy.application import ReconstructionApplication, run
from multirecon.interop.deploy.operators import DicomLoader, DicomWriter, NiftiWriter


class Synthesis(ReconstructionApplication):
    """Loader, reconstruction, writers."""

    def compose(self) -> None:
        """Connect the operators."""
        context = self.context()
        loader = DicomLoader(self, path=context.input_path, name="loader")
        reconstruction = self.reconstruction(context.model_path)
        self.add_flow(loader, reconstruction, {("item", "item")})
        dicom = DicomWriter(self, path=Path(context.output_path) / "dicom", name="dicom_writer")
        self.add_flow(reconstruction, dicom, {("images", "images")})
        nifti = NiftiWriter(self, path=context.output_path, name="nifti_writer")
        self.add_flow(reconstruction, nifti, {("images", "images")})


if __name__ == "__main__":
    run(Synthesis, Path(__file__).with_name("app.yaml"))
