-- Closes a batch for new jobs; from here on it can become complete.
-- KEYS  SHARED
-- ARGV  1 batch id
-- Returns {'ok', total jobs} | {'closed'} (cancelled) | {'missing'}
-- Invariant: sealing twice changes nothing.
local m = redis.call('HMGET', META, 'phase', 'control', 'total')
if not m[1] then return {'missing'} end
if m[2] == 'cancelled' then return {'closed'} end
if m[1] == 'open' then
  redis.call('ZREM', OPEN, ARGV[1])  -- and, being a removal, lets a Redis that is full take the rest
  redis.call('HSET', META, 'phase', 'sealed', 'sealed_ms', int(now_ms))
  if m[2] == 'run' and redis.call('EXISTS', PARKED) == 1 then redis.call('SADD', RESUMED, ARGV[1]) end
  end_if_over()
end
return {'ok', tonumber(m[3])}
