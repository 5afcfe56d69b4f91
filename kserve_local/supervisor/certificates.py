"""The project's own CA and the API server's certificate: ECDSA P-256, made once, kept in the state.

Names: localhost, 127.0.0.1, ::1. The extensions are those that strict verifiers ask for (RFC 5280:
basic constraints and key usage critical, subject and authority key identifiers), so that kubectl,
Go and Python's VERIFY_X509_STRICT accept it. A certificate that is damaged, near its end or lacks a
name is replaced; the CA stays as long as it can, because kubeconfigs hold it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_NAMES = ("localhost", "127.0.0.1", "::1")
_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=365)
_RENEW_BEFORE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: the CA that clients trust, and what the server presents."""

    ca: Path
    certificate: Path
    key: Path


def ensure(folder: Path, *, hosts: Iterable[str] = (), now: datetime | None = None) -> Certificates:
    """Return the certificates in `folder`, making what is missing or no longer good.

    Args:
        folder: Made with mode 0700 if missing; keys have mode 0600.
        hosts: More names or addresses for the server's certificate.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    at = now or datetime.now(UTC)
    names = list(dict.fromkeys((*_NAMES, *hosts)))
    ca_path, ca_key_path = folder / "ca.crt", folder / "ca.key"
    leaf_path, leaf_key_path = folder / "server.crt", folder / "server.key"
    ca, ca_key = _read(ca_path), _read_key(ca_key_path)
    if ca is None or ca_key is None or not _good_ca(ca, ca_key, at):
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _make_ca(ca_key, at)
        _write(ca_key_path, _pem(ca_key), 0o600)
        _write(ca_path, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    leaf, leaf_key = _read(leaf_path), _read_key(leaf_key_path)
    if leaf is None or leaf_key is None or not _good_leaf(leaf, leaf_key, ca, names, at):
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        leaf = _make_leaf(leaf_key, ca, ca_key, names, at)
        _write(leaf_key_path, _pem(leaf_key), 0o600)
        _write(leaf_path, leaf.public_bytes(serialization.Encoding.PEM), 0o644)
    return Certificates(ca_path, leaf_path, leaf_key_path)


def _make_ca(key: ec.EllipticCurvePrivateKey, at: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kserve-local CA")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(hours=1))
        .not_valid_after(at + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_leaf(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: list[str],
    at: datetime,
) -> x509.Certificate:
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kserve-local API")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(hours=1))
        .not_valid_after(at + _LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _good_ca(ca: x509.Certificate, key: ec.EllipticCurvePrivateKey, at: datetime) -> bool:
    return _lasts(ca, at) and ca.public_key() == key.public_key()


def _good_leaf(
    leaf: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: list[str],
    at: datetime,
) -> bool:
    if not _lasts(leaf, at) or leaf.public_key() != key.public_key():
        return False
    try:
        leaf.verify_directly_issued_by(ca)
        held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return {_general_name(name) for name in names} <= set(held)


def _lasts(certificate: x509.Certificate, at: datetime) -> bool:
    return (
        certificate.not_valid_before_utc <= at
        and at + _RENEW_BEFORE < certificate.not_valid_after_utc
    )


def _read(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        info = path.lstat()
        if info.st_uid != os.getuid() or info.st_mode & 0o077:
            return None  # one that others may read, or that came with the project, is no secret
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Put content into place whole; a crash leaves the old file or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
