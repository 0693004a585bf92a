-- What an operator wants to know of a peer.
ALTER TABLE peer ADD COLUMN last_seen INTEGER NOT NULL DEFAULT 0; -- in seconds that the daemon has seen pass
ALTER TABLE peer ADD COLUMN address TEXT NOT NULL DEFAULT '';     -- where it came from last
ALTER TABLE peer ADD COLUMN features BLOB NOT NULL DEFAULT x'';   -- those with a name, of its last init

-- Nothing of an older time is known: from now on it counts.
UPDATE peer SET last_seen = (SELECT seen FROM meta);

-- Updates of peers that were not stored, and why.
CREATE TABLE refusal (
    node_id  BLOB NOT NULL CHECK (length(node_id) = 33),
    reason   TEXT NOT NULL,
    count    INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at  INTEGER NOT NULL,
    PRIMARY KEY (node_id, reason)
) STRICT, WITHOUT ROWID;

-- Who is served whatever the policy says, and who is not.
CREATE TABLE rule (
    node_id BLOB PRIMARY KEY NOT NULL CHECK (length(node_id) = 33),
    rule    TEXT NOT NULL CHECK (rule IN ('allow', 'deny')),
    set_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What retention looks for.
CREATE INDEX channel_closed ON channel (closed) WHERE closed IS NOT NULL;
CREATE INDEX peer_last_seen ON peer (last_seen);
