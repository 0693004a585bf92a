"""Where backups are kept: the Store protocol, and SQLite."""
