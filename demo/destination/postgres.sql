SELECT extract(epoch FROM clock_timestamp()), EXISTS (SELECT FROM shop.orders), EXISTS (SELECT FROM shop.payments);
DO $$ BEGIN PERFORM pg_sleep(0.003); END $$;
