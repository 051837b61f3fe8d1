-- Notes what a worker process does.
-- KEYS  1 its status  2 WORKERS   ARGV  1 the status (JSON)  2 forgotten after (ms)  3 worker id
-- Returns nothing
-- Invariant: a Redis that is full takes it, too: it says why nothing happens.
local time = redis.call('TIME')
redis.call('ZREM', KEYS[2], '')  -- removes nothing; after a removal, what takes memory is not refused
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), ARGV[3])
