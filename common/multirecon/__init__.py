"""MultiRecon Zoo: MONAI bundles, operators and evaluation for multimodal medical image reconstruction.

Importing the package alone loads neither torch nor MONAI; its submodules do.
"""

__version__ = "0.1.0"
