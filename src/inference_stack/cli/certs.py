"""`istack certs`: a certificate authority for the links between gateways and nodes, and certificates for both.

A certificate says what its holder may be: a node's (server) is refused where a gateway's (client) is asked for, and the other way
round. Elliptic curve P-256; private keys are readable by their owner alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from inference_stack.core.errors import InferenceError, invalid

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_DAYS: Final = 3650
SKEW: Final = timedelta(hours=1)
"""A certificate is valid a little earlier, for clocks that are behind."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})")


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def certs(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where the files are written; ca.crt and ca.key are kept.")
    ],
    node: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,HOST…]", help="A node, and the names and addresses that gateways dial. Repeatable."
        ),
    ] = None,
    gateway: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A gateway. Repeatable.")] = None,
    days: Annotated[int, typer.Option(min=1, max=CA_DAYS, help="How long the certificates are valid.")] = 365,
) -> None:
    """Make certificates for the links between gateways and nodes."""
    from inference_stack.core.seams import SystemClock

    wanted = [(hosts.split(","), True) for hosts in node or []] + [(hosts.split(","), False) for hosts in gateway or []]
    names = [hosts[0] for hosts, _ in wanted]
    for name in names:
        if not _NAME.fullmatch(name) or name == "ca" or names.count(name) > 1:
            raise invalid(f"`{name}` cannot be the name of a certificate here: it is taken, or no plain name.")
    now = datetime.fromtimestamp(SystemClock().wall(), UTC)
    folder.mkdir(parents=True, exist_ok=True)
    authority = load_authority(folder) or write_authority(folder, now)
    for hosts, server in wanted:
        certificate, key = issue(authority, hosts, server=server, begin=now, end=now + timedelta(days=days))
        _write(folder / f"{hosts[0]}.key", key, private=True)
        _write(folder / f"{hosts[0]}.crt", certificate)
        print(f"{'node' if server else 'gateway'} {hosts[0]}: {folder / hosts[0]}.crt, valid for {days} days")
    print(f"authority: {folder / 'ca.crt'}")
    print("Keep ca.key away from gateways and nodes: whoever has it can pose as any of them.")


def load_authority(folder: Path) -> Authority | None:
    """The authority that is in `folder` already. Raises `InferenceError` when half of it is."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    paths = folder / "ca.crt", folder / "ca.key"
    if not any(path.exists() for path in paths):
        return None
    try:
        certificate, key = (path.read_bytes() for path in paths)
        authority, private = x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, None)
    except (OSError, ValueError, TypeError) as error:
        raise InferenceError(invalid(f"The authority in {folder} cannot be used: {error}").info) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != authority.public_key():
        raise invalid(f"The authority in {folder} cannot be used: ca.key is not the key of ca.crt.")
    return Authority(authority, private)


def write_authority(folder: Path, now: datetime) -> Authority:
    """A new authority, in `folder`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _named("Inference Stack CA")
    certificate = (
        _builder(key, name, name, now, now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _pem_key(key), private=True)
    _write(folder / "ca.crt", _pem(certificate))
    return Authority(certificate, key)


def issue(
    authority: Authority, hosts: list[str], *, server: bool, begin: datetime, end: datetime
) -> tuple[bytes, bytes]:
    """A certificate and its key, PEM. The first of `hosts` is its common name; a node is a `server`, a gateway is not."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    role = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (
        _builder(key, _named(hosts[0]), authority.certificate.subject, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([role]), critical=True)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return _pem(certificate), _pem_key(key)


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    """A host as a certificate names it. Raises `InferenceError`."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise invalid(f"`{host}` is neither the name of a host nor an address.") from None
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes, private: bool = False) -> None:
    """Replace a file at once. What is private never exists with more rights."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644), "wb") as file:
        file.write(data)
    draft.replace(path)
