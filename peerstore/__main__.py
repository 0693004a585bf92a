"""`python -m peerstore`."""

from peerstore.cli import main

main()
