-- Numbers become text, and a column gets another name.
ALTER TABLE shop.orders
  ALTER COLUMN reference DROP DEFAULT,
  ALTER COLUMN reference TYPE text USING 'R-' || lpad(reference::text, 8, '0'),
  ALTER COLUMN reference SET DEFAULT 'R-' || lpad(nextval('shop.reference')::text, 8, '0');
ALTER TABLE shop.customers RENAME COLUMN phone TO phone_number;
