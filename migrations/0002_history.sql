-- Which run of revisions this is: begun anew by a restore.
ALTER TABLE meta ADD COLUMN epoch BLOB NOT NULL DEFAULT x'';
-- Seconds that daemons on this database have seen pass; no clock moves it.
ALTER TABLE meta ADD COLUMN seen INTEGER NOT NULL DEFAULT 0;
-- What is stored, kept up in each transaction: counting a million rows takes too long.
ALTER TABLE meta ADD COLUMN peers INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN backups INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN versions INTEGER NOT NULL DEFAULT 0; -- backups and what is kept beside

-- Peers that have stored something.
CREATE TABLE peer (
    node_id       BLOB PRIMARY KEY NOT NULL CHECK (length(node_id) = 33),
    first_seen    INTEGER NOT NULL, -- in seconds that the daemon has seen pass
    first_seen_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL,
    established   INTEGER NOT NULL DEFAULT 0 -- 1 once it came back after its probation
) STRICT, WITHOUT ROWID;

INSERT INTO peer (node_id, first_seen, first_seen_at, last_seen_at)
SELECT node_id, min(opened), min(stored_at), max(last_seen_at) FROM backup GROUP BY node_id;

UPDATE meta SET peers = (SELECT count(*) FROM peer),
                backups = (SELECT count(*) FROM backup),
                versions = (SELECT count(*) FROM backup),
                bytes = (SELECT coalesce(sum(size), 0) FROM backup);

-- A version that is given back in place of the current one of its slot.
CREATE TABLE hold (
    node_id    BLOB NOT NULL,
    kind       INTEGER NOT NULL,
    channel_id BLOB NOT NULL,
    backup_id  INTEGER NOT NULL,
    operator   INTEGER NOT NULL, -- 1: the operator's; 0: on the mark of data loss
    until      INTEGER,          -- in seconds that the daemon has seen pass; null: until undone
    PRIMARY KEY (node_id, kind, channel_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE alarm (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    kind            TEXT NOT NULL, -- shrink, damaged, behind
    node_id         BLOB,
    backup_kind     INTEGER,
    channel_id      BLOB,
    revision        INTEGER, -- the version that it is about
    text            TEXT NOT NULL,
    raised_at       INTEGER NOT NULL,
    last_at         INTEGER NOT NULL,
    count           INTEGER NOT NULL DEFAULT 1,
    acknowledged_at INTEGER
) STRICT;

CREATE INDEX alarm_open ON alarm (node_id, kind) WHERE acknowledged_at IS NULL;
-- What gives way first when the store is full.
CREATE INDEX backup_kept ON backup (node_id) WHERE replaced IS NOT NULL AND pins = 0;
