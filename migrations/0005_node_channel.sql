-- Channels of the routing node, as it has told of them.
CREATE TABLE node_channel (
    node_id       BLOB NOT NULL CHECK (length(node_id) = 33),
    channel_id    BLOB NOT NULL CHECK (length(channel_id) = 32),
    open          INTEGER NOT NULL, -- 1: open or pending
    closed_height INTEGER,          -- the block of its closing; null while it is open
    unsettled     INTEGER NOT NULL, -- 1: the chain is not that high, after a reorganization
    closed        INTEGER,          -- when the closing was first seen, in seconds that have aged things
    closed_at     INTEGER,
    PRIMARY KEY (node_id, channel_id)
) STRICT, WITHOUT ROWID;

-- Seconds that daemons have seen pass while what they are told of channels could be trusted. What is
-- kept ages by them: channel.closed, node_channel.closed, peer.last_aged.
ALTER TABLE meta ADD COLUMN aged INTEGER NOT NULL DEFAULT 0;
UPDATE meta SET aged = seen;
ALTER TABLE meta ADD COLUMN height INTEGER;      -- the newest that could be trusted
ALTER TABLE meta ADD COLUMN routing_node BLOB;   -- the id of the node that told of the channels

-- The peer's last visit: when, and at which height; null until the next one that can be trusted.
ALTER TABLE peer ADD COLUMN last_aged INTEGER NOT NULL DEFAULT 0;
UPDATE peer SET last_aged = last_seen;
ALTER TABLE peer ADD COLUMN last_height INTEGER;
CREATE INDEX peer_without_height ON peer (node_id) WHERE last_height IS NULL;

-- The height when the channel's own messages closed it; null where none was known.
ALTER TABLE channel ADD COLUMN closed_height INTEGER;

-- Nothing looks by these, and each visit would have to keep the first one up.
DROP INDEX peer_last_seen;
DROP INDEX channel_closed;
