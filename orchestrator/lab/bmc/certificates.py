"""Self-signed certificates for simulated BMCs: one key and one certificate per endpoint."""

import datetime
import hashlib
import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 825


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate (PEM) and its private key (PEM, mode 0600) lie, and what a client may pin."""

    certificate_path: Path
    key_path: Path
    sha256: str
    """Lower-case hex SHA-256 of the certificate's DER form: what `ssl.getpeercert(binary_form=True)` hashes
    to.
    """


def make_certificate(directory: Path, common_name: str, ip: str, *, valid_days: int = VALID_DAYS) -> CertificateFiles:
    """A new key and self-signed certificate for `ip`, as DIRECTORY/COMMON_NAME.{pem,key}; replaces older
    ones.

    The address stands in a subjectAltName, so a client that trusts this one certificate verifies the
    address too. With `valid_days` 0 or less it has run out already. Errors: ValueError if `ip` is no IP address, OSError if
    the directory cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A day back: clocks of clients are not all right.
        .not_valid_before(now + datetime.timedelta(days=min(valid_days, 0) - 1))
        .not_valid_after(now + datetime.timedelta(days=valid_days, seconds=-1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ip))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(key_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    certificate_path, key_path = directory / f"{common_name}.pem", directory / f"{common_name}.key"
    _write_private(
        key_path,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    der = certificate.public_bytes(serialization.Encoding.DER)
    return CertificateFiles(certificate_path, key_path, hashlib.sha256(der).hexdigest())


def server_context(certificate_path: Path, key_path: Path) -> ssl.SSLContext:
    """A TLS context for one endpoint: TLS 1.2 or newer, its own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate_path, key_path)
    return context


def _write_private(path: Path, content: bytes) -> None:
    # A draft that is born 0600 and then renamed: at no moment can another user read the key.
    draft = path.with_name(path.name + ".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)
