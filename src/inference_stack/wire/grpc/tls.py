"""Certificates of a link, and when one may do without: never beyond this machine, unless that was asked for, and then loudly.

Both sides trust one authority. A gateway checks that a node's certificate names the address it dialled and is a server's; a node
checks that a gateway's is a client's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import grpc

from inference_stack.core.errors import InferenceError, invalid
from inference_stack.wire.addresses import is_loopback

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM: the authority that both sides trust, this side's certificate, its private key. Empty: no certificates.

    `insecure` allows links beyond this machine without them.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    insecure: bool = False

    @property
    def present(self) -> bool:
        """Whether there are certificates. Raises `InferenceError` when some of the files are named and some are not."""
        given = (self.ca, self.cert, self.key)
        if any(given) and not all(given):
            raise invalid("TLS needs all three files: ca, cert and key.", param="tls")
        return all(given)


def client_credentials(address: str, tls: Tls) -> grpc.ChannelCredentials | None:
    """What a gateway shows a node at this address; None for a link without certificates. Raises `InferenceError`."""
    if not tls.present:
        _allow_plain(address, tls)
        return None
    ca, cert, key = _files(tls)
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def server_credentials(address: str, tls: Tls) -> grpc.ServerCredentials | None:
    """What a node that listens at this address shows, and asks for; None without certificates. Raises `InferenceError`."""
    if not tls.present:
        _allow_plain(address, tls)
        return None
    ca, cert, key = _files(tls)
    return grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=True)


def _allow_plain(address: str, tls: Tls) -> None:
    if is_loopback(address):
        return
    if not tls.insecure:
        raise invalid(
            f"{address} is beyond this machine, and there are no certificates. Make some with `istack certs` and name them "
            "with --tls-ca, --tls-cert and --tls-key, or allow anybody to read and write with --tls-insecure.",
            param="tls",
            code="tls_required",
        )
    log.warning("INSECURE: the link at %s has no certificates. Anybody on the way can read and write it.", address)


def _files(tls: Tls) -> tuple[bytes, bytes, bytes]:
    try:
        ca, cert, key = (Path(name).expanduser().read_bytes() for name in (tls.ca, tls.cert, tls.key))
    except OSError as error:
        raise InferenceError(invalid(f"Cannot read {error.filename}: {error.strerror}.", param="tls").info) from error
    return ca, cert, key
