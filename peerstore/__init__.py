"""peerstore: a Lightning peer that keeps the encrypted backups of other peers."""

__version__ = "0.1.0"
