"""Who has channels with the routing node, and which were closed at which height."""
