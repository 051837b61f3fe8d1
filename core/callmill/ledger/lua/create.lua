-- Opens a new batch.
-- KEYS  SHARED, BATCHES, DEADLINES
-- ARGV  1 batch id  2 name  3 retention (ms)  4 priority  5 tenant ('' = nobody)  6 deadline (ms; 0 = none)
--       7 bytes of unread outcomes beyond which it is held (0 = any number)  8 '1': its lines are its own, '' = shared
-- Returns 1 | 0: a batch of this id is there already, nothing changed
if redis.call('EXISTS', META) == 1 then return 0 end
redis.call('HSET', META, 'format', FORMAT, 'name', ARGV[2], 'phase', 'open', 'control', 'run', 'created_ms', int(now_ms), 'retention_ms',
  ARGV[3], 'total', 0, 'chunks', 0, 'succeeded', 0, 'failed', 0, 'calls', 0, 'retries', 0, 'throttled', 0, 'leased', 0,
  'priority', ARGV[4], 'tenant', ARGV[5], 'deadline_ms', ARGV[6],
  'max_unread_bytes', ARGV[7])
if ARGV[8] ~= '' then redis.call('HSET', META, 'own_lines', ARGV[8]) end
redis.call('ZADD', KEYS[OWN], int(now_ms), ARGV[1])
redis.call('ZADD', OPEN, int(now_ms), ARGV[1])
redis.call('ZADD', ACTIVE, int(now_ms), ARGV[1])
if ARGV[6] ~= '0' then redis.call('ZADD', KEYS[OWN + 1], ARGV[6], ARGV[1]) end
return 1
