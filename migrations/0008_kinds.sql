-- How much is stored of the rarer kinds, without a look at every backup; the rest is the first kind.
CREATE INDEX backup_other_kinds ON backup (kind, replaced, size) WHERE kind <> 1;
-- And how many alarms stand, of which a crowd can raise many.
CREATE INDEX alarm_standing ON alarm (kind) WHERE acknowledged_at IS NULL;
