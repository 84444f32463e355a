"""`istack certs` makes an authority once, and certificates that say what their holders may be."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner, Result

from inference_stack.cli.main import app
from inference_stack.core.errors import InferenceError
from inference_stack.core.seams import LinkClosed
from inference_stack.wire.grpc.dial import dial
from inference_stack.wire.grpc.server import LinkServer
from inference_stack.wire.grpc.tls import Tls
from inference_stack.wire.messages import Beat


def certs(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["certs", str(folder), *options], catch_exceptions=False)


def refused(folder: Path, *options: str) -> str:
    with pytest.raises(InferenceError) as refusal:
        certs(folder, *options)
    return str(refusal.value)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def usage(found: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_certificates_carry_names_and_roles(tmp_path: Path) -> None:
    assert certs(tmp_path, "--node", "n1,node.example.org,10.0.0.1", "--gateway", "g1").exit_code == 0
    node, gateway = certificate(tmp_path / "n1.crt"), certificate(tmp_path / "g1.crt")
    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1", "node.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert (usage(node), usage(gateway)) == ([ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.CLIENT_AUTH])
    assert isinstance(node.public_key(), ec.EllipticCurvePublicKey)
    node.verify_directly_issued_by(certificate(tmp_path / "ca.crt"))


def test_private_keys_are_private_and_fit(tmp_path: Path) -> None:
    certs(tmp_path, "--node", "n1", "--gateway", "g1")
    for name in ("ca", "n1", "g1"):
        key = tmp_path / f"{name}.key"
        assert key.stat().st_mode & 0o777 == 0o600
        assert (
            load_pem_private_key(key.read_bytes(), None).public_key()
            == certificate(tmp_path / f"{name}.crt").public_key()
        )


def test_an_authority_is_kept_and_certificates_are_renewed(tmp_path: Path) -> None:
    certs(tmp_path, "--node", "n1")
    authority, node = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "n1.crt").read_bytes()
    certs(tmp_path, "--node", "n1")
    assert (tmp_path / "ca.crt").read_bytes() == authority
    assert (tmp_path / "n1.crt").read_bytes() != node
    certificate(tmp_path / "n1.crt").verify_directly_issued_by(certificate(tmp_path / "ca.crt"))


def test_the_lifetime_can_be_chosen(tmp_path: Path) -> None:
    certs(tmp_path, "--node", "n1", "--days", "7")
    found = certificate(tmp_path / "n1.crt")
    assert (found.not_valid_after_utc - found.not_valid_before_utc).days == 7


def test_names_that_would_collide_or_escape_are_refused(tmp_path: Path) -> None:
    for name in ("ca", "../evil", "", "*"):
        assert name in refused(tmp_path, "--node", name)
    assert "x" in refused(tmp_path, "--node", "x", "--gateway", "x")
    assert "a b" in refused(tmp_path, "--node", "n1,a b")
    assert list(tmp_path.glob("[!c]*")) == []


def test_half_an_authority_is_not_replaced(tmp_path: Path) -> None:
    certs(tmp_path, "--node", "n1")
    (tmp_path / "ca.key").unlink()
    assert "cannot be used" in refused(tmp_path, "--node", "n2")


def test_a_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    certs(tmp_path / "a")
    certs(tmp_path / "b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    assert "ca.key is not the key of ca.crt" in refused(tmp_path / "a", "--node", "n1")


async def test_the_files_make_a_link(tmp_path: Path) -> None:
    certs(tmp_path, "--node", "n1,127.0.0.1", "--gateway", "g1")

    def tls(name: str) -> Tls:
        return Tls(ca=f"{tmp_path}/ca.crt", cert=f"{tmp_path}/{name}.crt", key=f"{tmp_path}/{name}.key")

    async def on_link(link: object, peer: str) -> None:
        await link.send(Beat(number=len(peer), heard=0))  # type: ignore[attr-defined]

    server = LinkServer("127.0.0.1:0", tls("n1"), on_link)
    await server.start()
    link = await dial(f"127.0.0.1:{server.port}", tls("g1"))
    assert await link.receive() == Beat(number=len("g1"), heard=0)
    with pytest.raises(LinkClosed):
        await link.receive()
    await link.close()
    await server.stop()
