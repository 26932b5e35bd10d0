"""Data files that ship with the package: the default head label map and its notice."""
