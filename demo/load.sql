BEGIN;
WITH placed AS (
  INSERT INTO shop.orders (customer_id, total, details)
  SELECT 1 + floor(random() * 100000)::int, round((5 + random() * 900)::numeric, 2), jsonb_build_object('gift', random() < 0.1)
  RETURNING id, total
), item AS (
  INSERT INTO shop.order_items (order_id, product_id, quantity, price)
  SELECT id, 1 + floor(random() * 10000)::int, 1 + floor(random() * 5)::int, round((1 + random() * 500)::numeric, 2) FROM placed, generate_series(1, 3)
)
INSERT INTO shop.payments (order_id, amount, method) SELECT id, total, 'card' FROM placed;
UPDATE shop.products SET stock = stock - 1, updated_at = now() WHERE id = (SELECT 1 + floor(random() * 10000)::int);
UPDATE shop.customers SET address = address || jsonb_build_object('zip', floor(random() * 99999)::int::text) WHERE id = (SELECT 1 + floor(random() * 100000)::int);
UPDATE shop.orders SET status = 'shipped' WHERE id = (SELECT 1 + floor(random() * 250000)::int);
DELETE FROM shop.order_items WHERE id = (SELECT 1 + floor(random() * 600000)::int);
COMMIT;
DO $$ BEGIN PERFORM pg_sleep(0.02); END $$;
