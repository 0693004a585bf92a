-- Who gives way when the store is full is found by these, however many strangers there are. A
-- stranger is a peer on probation: established = 0.

-- Where a peer came from last, as addresses.group_of names it. Of those that were here before this
-- nothing is known: each is in a group of its own until it comes again.
ALTER TABLE peer ADD COLUMN address_group TEXT NOT NULL DEFAULT '';
UPDATE peer SET address_group = lower(hex(node_id));

-- Kept versions of a peer that are not pinned.
ALTER TABLE peer ADD COLUMN spare INTEGER NOT NULL DEFAULT 0;
UPDATE peer SET spare = (SELECT count(*) FROM backup WHERE backup.node_id = peer.node_id
                                                     AND replaced IS NOT NULL AND pins = 0);

CREATE INDEX peer_stranger ON peer (address_group, first_seen) WHERE established = 0;
CREATE INDEX peer_spare ON peer (first_seen) WHERE established = 0 AND spare > 0;

-- The strangers of each address group, kept up by what follows.
CREATE TABLE crowd (
    address_group TEXT PRIMARY KEY NOT NULL,
    strangers     INTEGER NOT NULL, -- how many there are
    newest        INTEGER NOT NULL  -- first_seen of the newest of them
) STRICT, WITHOUT ROWID;
INSERT INTO crowd (address_group, strangers, newest)
SELECT address_group, count(*), max(first_seen) FROM peer WHERE established = 0
GROUP BY address_group;
CREATE INDEX crowd_size ON crowd (strangers, newest);

CREATE TRIGGER stranger_comes AFTER INSERT ON peer WHEN NEW.established = 0
BEGIN
    INSERT INTO crowd (address_group, strangers, newest)
    VALUES (NEW.address_group, 1, NEW.first_seen)
    ON CONFLICT (address_group) DO UPDATE SET
        strangers = strangers + 1, newest = max(newest, excluded.newest);
END;

CREATE TRIGGER stranger_goes AFTER DELETE ON peer WHEN OLD.established = 0
BEGIN
    DELETE FROM crowd WHERE address_group = OLD.address_group AND strangers = 1;
    UPDATE crowd SET strangers = strangers - 1, newest = coalesce((
        SELECT max(first_seen) FROM peer
        WHERE address_group = OLD.address_group AND established = 0), 0)
    WHERE address_group = OLD.address_group;
END;

CREATE TRIGGER stranger_leaves_group AFTER UPDATE OF established, address_group, first_seen ON peer
WHEN OLD.established = 0 AND (OLD.established, OLD.address_group, OLD.first_seen)
                             IS NOT (NEW.established, NEW.address_group, NEW.first_seen)
BEGIN
    DELETE FROM crowd WHERE address_group = OLD.address_group AND strangers = 1;
    UPDATE crowd SET strangers = strangers - 1, newest = coalesce((
        SELECT max(first_seen) FROM peer
        WHERE address_group = OLD.address_group AND established = 0), 0)
    WHERE address_group = OLD.address_group;
END;

CREATE TRIGGER stranger_joins_group AFTER UPDATE OF established, address_group, first_seen ON peer
WHEN NEW.established = 0 AND (OLD.established, OLD.address_group, OLD.first_seen)
                             IS NOT (NEW.established, NEW.address_group, NEW.first_seen)
BEGIN
    INSERT INTO crowd (address_group, strangers, newest)
    VALUES (NEW.address_group, 1, NEW.first_seen)
    ON CONFLICT (address_group) DO UPDATE SET
        strangers = strangers + 1, newest = max(newest, excluded.newest);
END;

CREATE TRIGGER version_is_kept AFTER UPDATE OF replaced, pins ON backup
WHEN (OLD.replaced IS NOT NULL AND OLD.pins = 0) <> (NEW.replaced IS NOT NULL AND NEW.pins = 0)
BEGIN
    UPDATE peer SET spare = spare + iif(NEW.replaced IS NOT NULL AND NEW.pins = 0, 1, -1)
    WHERE node_id = NEW.node_id;
END;

CREATE TRIGGER kept_version_goes AFTER DELETE ON backup
WHEN OLD.replaced IS NOT NULL AND OLD.pins = 0
BEGIN
    UPDATE peer SET spare = spare - 1 WHERE node_id = OLD.node_id;
END;
