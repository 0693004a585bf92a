"""Every error that peerstore raises on purpose.

PeerstoreError                  the base; never raised itself
|-- OperatorError               something the operator can mend; its text is the line shown
|   |-- ConfigError             a key, a file or a variable of the configuration
|   |-- AddressError            a node id, a host or a port that can't be read
|   |-- KeyFileError            the node's key: missing, unreadable, malformed, open to others
|   |-- DataDirectoryError      the data directory can't be made, written or locked
|   |-- ListenError             no peer socket could be opened
|   |-- DialError               a peer could not be connected to
|   |-- SourceError             the routing node gave no proper answer
|   |-- DeclinedError           an operator was asked and did not agree
|   |-- NotRunningError         the daemon is needed and does not run: a command exits 3
|   |-- StoreError              the database
|   |   |-- SchemaError         made by a newer program, or for another key or network
|   |   |-- StoreClosedError    asked after it was closed, or by a connection fenced off
|   |   `-- DamagedBackupError  a stored blob does not match its digest
|   |       `-- MissingBackupError  it is not there any more
|   |-- ControlError            the control socket: not there, or it answered with an error
|   `-- ProbeError              a provider did not do what the protocol says
`-- PeerError                   the other side of a connection broke the protocol
    |-- TransportError          BOLT 8: close at once, answer nothing
    |   |-- HandshakeError      an act is wrong; `code` is BOLT 8's name for it
    |   `-- DecryptionError     a message's MAC is wrong
    |-- CodecError              a message or a field can't be read: `warning`, then close
    `-- FeatureError            `init` asks for what is not there: `warning`, then close
"""

from __future__ import annotations


class PeerstoreError(Exception):
    """Base of all; the text is one line for a person."""


class OperatorError(PeerstoreError):
    """Something an operator can mend; a command prints the text and exits 1."""


class ConfigError(OperatorError):
    """A key, a file or a variable of the configuration is wrong."""


class AddressError(OperatorError):
    """A node id, a host or a port can't be read."""


class KeyFileError(OperatorError):
    """The node's key file is missing, unreadable, malformed or open to others."""


class DataDirectoryError(OperatorError):
    """The data directory can't be made or written, or another daemon holds it."""


class ListenError(OperatorError):
    """A peer socket could not be opened."""


class DialError(OperatorError):
    """A peer could not be connected to."""


class HopelessDialError(DialError):
    """It can't be connected to, however often it is tried: this node itself, or no key at all."""


class SourceError(OperatorError):
    """The routing node can't be reached, or did not answer as it should."""


class DeclinedError(OperatorError):
    """An operator was asked whether to go on, and did not agree."""


class NotRunningError(OperatorError):
    """The daemon is needed and does not run; a command exits 3."""


class StoreError(OperatorError):
    """The database can't be opened, read or written."""


class SchemaError(StoreError):
    """The database was made by a newer program, or for another key or network."""


class StoreClosedError(StoreError):
    """Asked after the store was closed, or by a connection that was fenced off."""


class DamagedBackupError(StoreError):
    """A stored blob does not match its digest; it is never sent."""


class MissingBackupError(DamagedBackupError):
    """A version was deleted since it was looked up."""


class ControlError(OperatorError):
    """The control socket is not there, or its answer is an error."""


class ProbeError(OperatorError):
    """A provider did not do what the protocol says."""


class PeerError(PeerstoreError):
    """The other side of a connection broke the protocol."""


class TransportError(PeerError):
    """BOLT 8 was broken: the connection is closed at once, nothing is answered."""


class HandshakeError(TransportError):
    """An act is wrong.

    `code` is the name that BOLT 8, Appendix A gives it, such as `ACT1_BAD_TAG`.
    """

    def __init__(self, code: str) -> None:
        super().__init__(f"handshake failed: {code}")
        self.code = code


class DecryptionError(TransportError):
    """The MAC of a message's length or body is wrong."""


class CodecError(PeerError):
    """A message or a field can't be read; the text is what the peer's `warning` says."""


class FeatureError(PeerError):
    """The peer's `init` asks for what is not there; the text goes into a `warning`."""
