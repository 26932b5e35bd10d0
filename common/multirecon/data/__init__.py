"""Anatomies, phantoms, data sets and readers."""
