"""The link between gateways and nodes over gRPC: `dial.dial` at a gateway, `server.LinkServer` at a node.

`fleet.proto` is the contract. Above a link are only the dataclasses of `wire.messages`; what they mean is not known here.
"""
