-- At the destination, as the database's owner or a superuser. The role owns what it makes: the ledger (schema _mirror_operator) and the tables.
CREATE ROLE mirror_destination LOGIN PASSWORD 'change me';
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE warehouse TO mirror_destination;
GRANT USAGE, CREATE ON SCHEMA public TO mirror_destination;   -- each schema that the tables are to be in; schemas that do not exist are created

-- Readers: grants are given once and kept by every resync.
--   GRANT SELECT ON public.shop_orders TO analyst;
