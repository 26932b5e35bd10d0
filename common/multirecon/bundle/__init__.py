"""Bundles as folders: found by scanning, loaded as MONAI workflows, held to one contract."""

from .contract import CHECKS, verify
from .folder import BUNDLES_SETTING, Bundle, discover, find
from .guard import guard, root_cause, unknown_keys
from .loader import config_files, load, load_network
from .metadata import metadata_faults, schema, schema_path
from .naming import check_name, check_version
from .package import check_package, package_files, package_hash
from .weights import fresh_network, read_weights, reinitialise, weights_hash, write_weights

__all__ = [
    "BUNDLES_SETTING",
    "CHECKS",
    "Bundle",
    "check_name",
    "check_package",
    "check_version",
    "config_files",
    "discover",
    "find",
    "fresh_network",
    "guard",
    "load",
    "load_network",
    "metadata_faults",
    "package_files",
    "package_hash",
    "read_weights",
    "reinitialise",
    "root_cause",
    "schema",
    "schema_path",
    "unknown_keys",
    "verify",
    "weights_hash",
    "write_weights",
]
