-- Opens a new batch.
-- KEYS  SHARED, BATCHES
-- ARGV  1 batch id  2 name  3 retention (ms)  4 priority  5 tenant ('' = nobody)
--       6 bytes of unread outcomes from which on it is held (0 = any number)
-- Returns 1 | 0: a batch of this id is there already, nothing changed
if redis.call('EXISTS', META) == 1 then return 0 end
redis.call('HSET', META, 'name', ARGV[2], 'phase', 'open', 'control', 'run', 'created_ms', int(now_ms), 'retention_ms',
  ARGV[3], 'total', 0, 'chunks', 0, 'succeeded', 0, 'failed', 0, 'calls', 0, 'retries', 0, 'throttled', 0, 'leased', 0,
  'priority', ARGV[4], 'tenant', ARGV[5],
  'max_unread_bytes', ARGV[6])
redis.call('ZADD', KEYS[OWN], int(now_ms), ARGV[1])
return 1
