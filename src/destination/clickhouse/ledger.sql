-- The ledger: what is true of each epoch, in two tables of the Peer's database. ClickHouse has no transactions: each fact is a row that is only ever
-- replaced by one with a higher version, and facts that belong together are inserted as one block of one partition, which is written whole or not at all.

-- The epochs of each mirror that were begun. Nobody but `forget` removes them: the newest one is the fence.
{create mirror} (
    mirror UUID COMMENT 'UID of the Mirror',
    epoch  UInt32,
    name   String COMMENT 'namespace/name, for people',
    at     DateTime64(6, 'UTC') DEFAULT now64(6)
) ENGINE = {mirrors} PARTITION BY mirror ORDER BY (mirror, epoch)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Mirrors and their epochs (mirror-operator)';

-- What is known of an epoch, one row a fact.
{create fact} (
    mirror  UUID COMMENT 'UID of the Mirror',
    epoch   UInt32,
    kind    LowCardinality(String) COMMENT 'what is told',
    number  UInt32 COMMENT 'of the table or chunk that it is told of; otherwise 0',
    version UInt64 COMMENT 'the highest one counts',
    value   String COMMENT 'JSON',
    at      DateTime64(6, 'UTC') DEFAULT now64(6)
) ENGINE = {facts} PARTITION BY (mirror, epoch) ORDER BY (mirror, epoch, kind, number)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'What is true of each epoch (mirror-operator)'
