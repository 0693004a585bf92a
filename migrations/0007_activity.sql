-- What was stored and how many updates came, for each ten minutes in which a daemon ran.
CREATE TABLE activity (
    period  INTEGER PRIMARY KEY NOT NULL, -- meta.seen / 600: it rises, whatever the clock does
    at      INTEGER NOT NULL,             -- in Unix seconds, for people
    bytes   INTEGER NOT NULL,             -- all that was stored then
    updates INTEGER NOT NULL              -- that came since the one before
) STRICT;
