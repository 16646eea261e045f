SELECT concat(toString(toUnixTimestamp64Milli(now64(3)) / 1000), '|', if(EXISTS (SELECT 1 FROM orders LIMIT 1), 't', 'f'), '|', if(EXISTS (SELECT 1 FROM payments LIMIT 1), 't', 'f'))
