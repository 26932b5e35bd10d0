"""Bridges to other software; only the command line and the tests import them."""
