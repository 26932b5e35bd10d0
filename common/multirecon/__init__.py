"""MultiRecon Zoo: operators, priors and reconstructors for multimodal medical imaging."""

__version__ = "0.1.0"
