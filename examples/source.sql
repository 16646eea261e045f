-- At the source, as the tables' owner or a superuser. The least that a mirror needs.
-- The server: wal_level = logical, and a free replication slot and WAL sender for each mirror, and one more of each while a lost snapshot is replaced.
CREATE ROLE mirror_source LOGIN REPLICATION PASSWORD 'change me';   -- Amazon RDS: GRANT rds_replication TO mirror_source
GRANT CONNECT ON DATABASE shop TO mirror_source;
GRANT USAGE ON SCHEMA public TO mirror_source;
GRANT SELECT ON public.customers, public.orders TO mirror_source;
-- Row security would hide rows; a mirror refuses such tables unless: ALTER ROLE mirror_source BYPASSRLS;

-- A publication of your own, named in the Mirror's source.publication. Only the tables' owner may make one.
CREATE PUBLICATION shop FOR TABLE public.customers, public.orders WITH (publish_via_partition_root = true);

-- Or let each epoch make and drop its own: then leave source.publication out, and
--   GRANT CREATE ON DATABASE shop TO mirror_source;
--   GRANT shop_owner TO mirror_source;   -- the role that owns the tables
