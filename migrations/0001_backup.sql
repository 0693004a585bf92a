-- What this database is for; one row.
CREATE TABLE meta (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    node_id       BLOB NOT NULL CHECK (length(node_id) = 33),
    network       TEXT NOT NULL,
    created_at    INTEGER NOT NULL, -- Unix seconds, as every time whose name ends in _at
    last_revision INTEGER NOT NULL  -- the newest ever given out, also to what is deleted by now
) STRICT;

-- Versions of backups. The current one of a slot (node_id, kind, channel_id) is the one with the
-- highest id. Columns stand before the blob, so that they are read without it.
CREATE TABLE backup (
    id         INTEGER PRIMARY KEY, -- the revision with which the row was opened
    node_id    BLOB NOT NULL CHECK (length(node_id) = 33),
    kind       INTEGER NOT NULL CHECK (kind IN (1, 2, 3)), -- peer_storage, node_backup, channel_backup
    channel_id BLOB NOT NULL CHECK (length(channel_id) = CASE kind WHEN 3 THEN 32 ELSE 0 END),
    revision   INTEGER NOT NULL,
    size       INTEGER NOT NULL,
    sha256     BLOB NOT NULL CHECK (length(sha256) = 32),
    digest     BLOB NOT NULL CHECK (length(digest) = 32), -- over slot, revision and blob
    stored_at  INTEGER NOT NULL,
    last_seen_at INTEGER NOT NULL, -- when the peer last sent exactly this blob
    opened     INTEGER NOT NULL,   -- when it became current, in seconds that the daemon has seen pass
    replaced   INTEGER,            -- when it ceased to be; null while it is current
    burst      INTEGER,            -- the last replacement of the burst that it stood before, if any
    pins       INTEGER NOT NULL DEFAULT 0, -- 1: of itself, on the mark of data loss; 2: by the operator
    blob       BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX backup_slot ON backup (node_id, kind, channel_id, id);
