"""Ed25519 signatures of a zoo's manifest, by the package ``cryptography`` (extra ``zoo``)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["check_signature", "fingerprint", "load_private_key", "load_public_key", "sign"]

MAX_KEY_BYTES = 4096


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read an unencrypted PEM file, as ``openssl genpkey -algorithm ed25519`` writes it.

    Raises:
        ValueError: if it is not an Ed25519 private key.
    """
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        raise ValueError(f"key: expected an unencrypted Ed25519 private key (PEM), got {str(path)!r}") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ValueError(f"key: expected an Ed25519 private key, got {type(key).__name__} in {str(path)!r}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a PEM file, as ``openssl pkey -pubout`` writes it.

    Raises:
        ValueError: if it is not an Ed25519 public key.
    """
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_public_key(_read(path))
    except ValueError:
        raise ValueError(f"key: expected an Ed25519 public key (PEM), got {str(path)!r}") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ValueError(f"key: expected an Ed25519 public key, got {type(key).__name__} in {str(path)!r}")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return a short name of a public key: the first 16 digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the signature of a content as a line of base64."""
    return base64.b64encode(key.sign(content)) + b"\n"


def check_signature(content: bytes, signature: bytes, key: Ed25519PublicKey) -> None:
    """Check a line of base64 against the exact bytes that it signs.

    Raises:
        ValueError: if it is not this key's signature of this content.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature.strip(), validate=True), content)
    except (InvalidSignature, binascii.Error, ValueError):
        raise ValueError(f"manifest: expected the signature of key {fingerprint(key)}, got another or none "
                         "(the manifest was changed, or signed by somebody else)") from None  # fmt: skip


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"key: expected an existing file, got {str(path)!r}")
    with path.open("rb") as file:
        return file.read(MAX_KEY_BYTES)


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ValueError(
            "key: signatures need the package 'cryptography' (pip install cryptography), got none"
        ) from None
    return serialization, ed25519
