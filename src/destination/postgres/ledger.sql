-- The ledger: what is true of each epoch, kept in the destination beside the data, so that both change in one transaction.
-- Run if a table is missing or the layout is older than this one; every statement is safe to repeat. Later layouts only add columns and tables, so that
-- pods of an older version can go on. The schema exists already: a role that may not create
-- schemas is refused by CREATE SCHEMA IF NOT EXISTS even where it exists.

-- One row a mirror. `epoch` is the fence: a writer of an older epoch that finds a newer one here stops. It is the newest epoch begun, or, where the handover
-- is live, the one before it until that is to be swapped.
CREATE TABLE IF NOT EXISTS _mirror_operator.mirror (
    mirror      uuid PRIMARY KEY,            -- UID of the Mirror
    name        text NOT NULL,               -- namespace/name, for people
    epoch       int  NOT NULL,
    live_epoch  int  NOT NULL DEFAULT 0,     -- whose tables bear the live names; 0 before the first load
    given_up    int  NOT NULL DEFAULT 0      -- epochs up to this one that have not begun never will
);

CREATE TABLE IF NOT EXISTS _mirror_operator.epoch (
    mirror        uuid NOT NULL REFERENCES _mirror_operator.mirror ON DELETE CASCADE,
    epoch         int  NOT NULL,
    resync        uuid NOT NULL,             -- UID of the MirrorResync
    slot          text NOT NULL,
    generation    int  NOT NULL DEFAULT 0,   -- of the exported snapshot; 0: no shadows yet; grows when the snapshot is lost
    snapshot_lsn  pg_lsn,                    -- consistent point of that generation
    start_lsn     pg_lsn,                    -- the slot's own consistent point
    applied_lsn   pg_lsn,                    -- the checkpoint: every transaction that ends at or before it is in the tables
    applied_at    timestamptz,
    applier       text,                      -- who may move the checkpoint: the applier opened last
    handed_over_at timestamptz,              -- of a live handover: since then earlier epochs are fenced
    caught_up_at  timestamptz,               -- and since then nothing is applied to the shadows any more
    partitions    int  NOT NULL DEFAULT 0,
    total_rows    bigint NOT NULL DEFAULT 0, -- estimates
    total_bytes   bigint NOT NULL DEFAULT 0,
    begun_at      timestamptz NOT NULL DEFAULT now(),
    carried_at    timestamptz,
    swapped_at    timestamptz,
    lock_millis   bigint,
    swap_retries  int,
    PRIMARY KEY (mirror, epoch)
);

CREATE TABLE IF NOT EXISTS _mirror_operator.table (
    mirror             uuid NOT NULL,
    epoch              int  NOT NULL,
    number             int  NOT NULL,        -- index in the Mirror's list
    schema             jsonb NOT NULL,       -- TableSchema
    destination_schema text NOT NULL,
    destination_name   text NOT NULL,
    shadow_name        text NOT NULL,
    relation           oid  NOT NULL,        -- the shadow, live after the swap
    retired            oid,                  -- the table it replaced, until that is dropped
    retired_name       text,
    generation         int  NOT NULL,        -- of the snapshot that it is (being) loaded from
    gate_lsn           pg_lsn NOT NULL,      -- changes of transactions that commit at or after this belong on top of the load
    sealed_at          timestamptz,          -- loaded, with its key and indexes
    source_rows        bigint,               -- what the source has in that snapshot, if it was asked
    source_sum         text,
    indexes            jsonb NOT NULL DEFAULT '[]', -- those built: their names until the swap, and after it
    carried_deleted    bigint,               -- both are set in the transaction that carries
    carried_missing    bigint,
    verified_rows      bigint,               -- set when the shadow was found to have what the source has
    note               text,
    parked             text,                 -- why the change stream passes it over
    drift              text[],               -- what differs from the source's table and wants a resync
    inserts            bigint NOT NULL DEFAULT 0,
    updates            bigint NOT NULL DEFAULT 0,
    deletes            bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (mirror, epoch, number),
    FOREIGN KEY (mirror, epoch) REFERENCES _mirror_operator.epoch ON DELETE CASCADE
);

CREATE TABLE IF NOT EXISTS _mirror_operator.chunk (
    mirror        uuid NOT NULL,
    epoch         int  NOT NULL,
    number        int  NOT NULL,
    partition     int  NOT NULL,             -- index of the snapshot Job
    table_number  int  NOT NULL,
    relation      oid  NOT NULL,             -- at the source: the table, or one leaf of a partitioned one
    first_block   bigint NOT NULL,           -- of a table with a partitionKey: position of a key, whose 64 bits are stored as they are
    end_block     bigint,                    -- exclusive; NULL: to the end, however far that is
    bytes_planned bigint NOT NULL,
    rows          bigint,
    bytes         bigint,
    loaded_at     timestamptz,               -- set in the transaction that brought the rows
    PRIMARY KEY (mirror, epoch, number),
    FOREIGN KEY (mirror, epoch) REFERENCES _mirror_operator.epoch ON DELETE CASCADE
);

CREATE INDEX IF NOT EXISTS chunk_partition ON _mirror_operator.chunk (mirror, epoch, partition);

-- One row: the version of this layout, for whoever opens the ledger. 1, the first, did not have this table; 2 has it and the column `drift`,
-- 3 the column `given_up`, 4 the columns `source_rows`, `source_sum` and `verified_rows`, 5 the columns `handed_over_at` and `caught_up_at`.
CREATE TABLE IF NOT EXISTS _mirror_operator.layout (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    version int NOT NULL
);
ALTER TABLE _mirror_operator.table ADD COLUMN IF NOT EXISTS drift text[];
ALTER TABLE _mirror_operator.mirror ADD COLUMN IF NOT EXISTS given_up int NOT NULL DEFAULT 0;
ALTER TABLE _mirror_operator.table ADD COLUMN IF NOT EXISTS source_rows bigint,
    ADD COLUMN IF NOT EXISTS source_sum text, ADD COLUMN IF NOT EXISTS verified_rows bigint;
ALTER TABLE _mirror_operator.epoch ADD COLUMN IF NOT EXISTS handed_over_at timestamptz, ADD COLUMN IF NOT EXISTS caught_up_at timestamptz;
INSERT INTO _mirror_operator.layout AS l (version) VALUES (5) ON CONFLICT (one) DO UPDATE SET version = greatest(l.version, excluded.version);
GRANT SELECT ON _mirror_operator.layout TO PUBLIC;
