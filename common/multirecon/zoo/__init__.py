"""Bundles as archives: packed, listed, signed, published, downloaded."""
