-- Closes a batch for new jobs; from here on it can become complete.
-- KEYS  SHARED
-- ARGV  1 batch id  2 chunks that were written to it ('' = however many it has)
-- Returns {'ok', total jobs} | {'closed'} (cancelled) | {'missing'} | {'short', chunks}: it has fewer, for this server lost some
-- Invariant: sealing twice changes nothing; a batch that lost jobs is not sealed by who knows how many it had.
local m = redis.call('HMGET', META, 'phase', 'control', 'total', 'chunks')
if not m[1] then return {'missing'} end
if m[2] == 'cancelled' then return {'closed'} end
if m[1] == 'open' then
  if ARGV[2] ~= '' and tonumber(m[4]) < tonumber(ARGV[2]) then return {'short', tonumber(m[4])} end
  redis.call('ZREM', OPEN, ARGV[1])  -- and, being a removal, lets a Redis that is full take the rest
  redis.call('HSET', META, 'phase', 'sealed', 'sealed_ms', int(now_ms))
  if m[2] == 'run' and redis.call('EXISTS', PARKED) == 1 then redis.call('SADD', RESUMED, ARGV[1]) end
  end_if_over()
end
return {'ok', tonumber(m[3])}
