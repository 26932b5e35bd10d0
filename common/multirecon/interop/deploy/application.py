"""What the example applications share: where they read and write, their settings, and one line when they fail."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from .operators import ReconstructionOperator

try:
    from monai.deploy.core import AppContext, Application
except ImportError as error:  # pragma: no cover - operators said so already
    raise ImportError(f"monai.deploy: {error}") from None

__all__ = ["ReconstructionApplication", "run"]

CONFIG_SETTING = "HOLOSCAN_CONFIG_PATH"


class ReconstructionApplication(Application):
    """An application around one bundle: input, output and model come from the command line or the environment.

    ``-i``, ``-o`` and ``-m`` (or HOLOSCAN_INPUT_PATH, HOLOSCAN_OUTPUT_PATH, HOLOSCAN_MODEL_PATH) name the folders; the
    section ``reconstruction`` of the application's ``app.yaml`` (or of the file that HOLOSCAN_CONFIG_PATH names) sets
    the bundle's options and the device.
    """

    def context(self) -> AppContext:
        """Return where to read from, to write to, and where the bundle lies; the output folder is made."""
        context = Application.init_app_context(self.argv)
        Path(context.output_path).mkdir(parents=True, exist_ok=True)
        return context

    def reconstruction(self, bundle: str | os.PathLike[str], *, name: str = "reconstruction") -> ReconstructionOperator:
        """Return the operator for a bundle, with the settings of the section of its name.

        Args:
            bundle: folder of the bundle.
            name: name of the operator and of the section.
        """
        settings: dict[str, Any] = dict(self.kwargs(name))
        device = settings.pop("device", None) or None
        variant = settings.pop("variant", None) or None
        return ReconstructionOperator(self, bundle=bundle, variant=variant, options=settings, device=device, name=name)


def run(application: type[ReconstructionApplication], config: str | os.PathLike[str]) -> None:
    """Run an application; a ValueError ends it in one line and with code 1.

    Args:
        application: its class.
        config: its ``app.yaml``.
    """
    try:
        app = application()
        app.config(os.environ.get(CONFIG_SETTING) or os.fspath(config))
        app.run()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
