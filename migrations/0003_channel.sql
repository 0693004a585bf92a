-- What the messages of a channel have said, beside its backup (bolts pull request 881).
CREATE TABLE channel (
    node_id     BLOB NOT NULL CHECK (length(node_id) = 33),
    channel_id  BLOB NOT NULL CHECK (length(channel_id) = 32),
    commitments INTEGER NOT NULL, -- commitment_signed received, a batch once
    revocations INTEGER NOT NULL, -- revoke_and_ack received
    last_secret BLOB NOT NULL CHECK (length(last_secret) = 32), -- of the last of these
    whole       INTEGER NOT NULL, -- 1: they were seen from funding_signed on
    shutdown    INTEGER NOT NULL, -- 1: the message came
    closing     INTEGER NOT NULL, -- 1: closing_signed or its like came
    digest      BLOB NOT NULL CHECK (length(digest) = 32), -- over all of the above
    closed      INTEGER,          -- when both had come, in seconds that the daemon has seen pass
    closed_at   INTEGER,
    PRIMARY KEY (node_id, channel_id)
) STRICT, WITHOUT ROWID;

-- 1: the peer hung up when it was shown its node backup, and has stored none since.
ALTER TABLE peer ADD COLUMN forgone INTEGER NOT NULL DEFAULT 0;
